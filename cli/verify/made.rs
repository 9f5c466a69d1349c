//! Tensors that a reader makes itself, so that a case need not store them: inputs from a seed, parameters from their names.

use crate::{Error, Result};
use autograd::ParamStore;
use engine::random::uniform;
use engine::{Element, Tensor};
use models::state_dict;
use serde::Deserialize;

/// How to make an input: `attrs.made` has one of these under the tensor's name.
#[derive(Clone, Debug, Deserialize)]
pub struct Made {
    shape: Vec<usize>,
    seed: u64,
    form: Form,
}

/// What becomes of u(seed, i), uniform in [0, 1), for element i in C order.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Form {
    /// f32: u.
    Unit,
    /// f32: 2u - 1.
    Signed,
    /// u8 `[N, C, D, H, W]`: ⌊256 u⌋, where voxel (z, y, x) takes the value of voxel (⌊z/e⌋, ⌊y/e⌋, ⌊x/e⌋): cubes of e = n % 8
    /// + 1 voxels in crop n, so that crops differ in texture.
    Blocks,
}

impl Made {
    pub fn tensor(&self) -> Result<Tensor> {
        let u = |i: usize| uniform(self.seed, i as u64);
        match self.form {
            Form::Unit => self.filled(|i| u(i) as f32),
            Form::Signed => self.filled(|i| (2.0 * u(i) - 1.0) as f32),
            Form::Blocks => {
                let [_, c, d, h, w] = self.shape[..] else {
                    return Err(Error::Message(format!("attrs.made: blocks need five axes, got {:?}", self.shape)));
                };
                self.filled(|i| {
                    let edge = i / (c * d * h * w) % 8 + 1;
                    let (plane, z, y, x) = (i / (d * h * w), i / (h * w) % d, i / w % h, i % w);
                    let at = ((plane * d + z / edge) * h + y / edge) * w + x / edge;
                    (256.0 * u(at)) as u8
                })
            }
        }
    }

    fn filled<T: Element>(&self, f: impl Fn(usize) -> T) -> Result<Tensor> {
        let numel = engine::Shape::new(&self.shape)?.numel();
        Ok(Tensor::from_slice(&(0..numel).map(f).collect::<Vec<T>>(), &self.shape)?)
    }
}

/// The value of the parameter of this name (without `backbone.`) and PyTorch shape, in C order: with r = 2 u(seed, i) - 1 and
/// the CRC-32 of the name as the seed, r/2 for bias tables, r √(3 / fan in) for other weights, 1 + r/10 for the weights of
/// norms, r/10 for biases.
pub fn parameter(name: &str, shape: &[usize]) -> Vec<f64> {
    let seed = u64::from(crc32fast::hash(name.as_bytes()));
    let numel: usize = shape.iter().product();
    let fan: usize = shape.iter().skip(1).product();
    let bound = (3.0 / fan as f64).sqrt();
    let value = |r: f64| match shape.len() {
        _ if name.ends_with("relative_position_bias_table") => 0.5 * r,
        1 if name.contains(".norm") && name.ends_with("weight") => 1.0 + 0.1 * r,
        1 => 0.1 * r,
        _ => r * bound,
    };
    (0..numel as u64).map(|i| value(2.0 * uniform(seed, i) - 1.0)).collect()
}

/// Gives every parameter of `store` the value of its name.
pub fn fill(store: &mut ParamStore) -> Result<()> {
    for id in store.ids() {
        let name = store.name(id).trim_start_matches("backbone.").to_string();
        let shape = state_dict::to_pytorch(&store.value(id)?)?.dims().to_vec();
        let value = Tensor::from_slice(&parameter(&name, &shape), &shape)?;
        store.set(id, state_dict::from_pytorch(&value)?.as_slice::<f64>()?)?;
    }
    Ok(())
}

/// Rounds every parameter of `store` to a number that f32 holds, as those of cases are.
pub fn round(store: &mut ParamStore) -> Result<()> {
    for id in store.ids() {
        let value = store.value(id)?.to_f64_vec()?;
        store.set(id, &value.iter().map(|&v| f64::from(v as f32)).collect::<Vec<f64>>())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_match_their_golden_values() {
        let w = parameter("swinViT.patch_embed.proj.weight", &[12, 1, 2, 2, 2]);
        for (got, want) in w.iter().zip([0.117021698, -0.610046939, -0.413939956]) {
            assert!((got - want).abs() < 1e-9, "{got} {want}");
        }
    }

    #[test]
    fn blocks_are_cubes_that_grow_with_the_crop() {
        let made = Made { shape: vec![3, 1, 4, 4, 4], seed: 5, form: Form::Blocks };
        let all = made.tensor().expect("blocks").to_vec::<u8>().expect("bytes");
        let at = |n: usize, z: usize, y: usize, x: usize| all[((n * 4 + z) * 4 + y) * 4 + x];
        assert!((0..64).any(|i| all[i] != all[0]));
        assert_eq!(at(1, 1, 1, 1), at(1, 0, 0, 0));
        assert_eq!(at(2, 2, 1, 0), at(2, 0, 0, 2));
        assert_ne!(at(2, 3, 0, 0), at(2, 0, 0, 0));
        assert_eq!(at(1, 2, 3, 0), (256.0 * uniform(5, 64 + 16 + 4)) as u8);
    }
}
