use autograd::{Init, ParamId, ParamStoreBuilder, Role};

/// A builder with a name prefix, as PyTorch's nested modules have.
pub struct Scope<'b> {
    builder: &'b mut ParamStoreBuilder,
    prefix: String,
}

impl<'b> Scope<'b> {
    /// `prefix` ends in a dot, or is empty.
    pub fn new(builder: &'b mut ParamStoreBuilder, prefix: &str) -> Self {
        Scope { builder, prefix: prefix.into() }
    }

    pub fn child(&mut self, name: &str) -> Scope<'_> {
        Scope { prefix: format!("{}{name}.", self.prefix), builder: self.builder }
    }

    /// What the parameters' names begin with, without the last dot.
    pub fn name(&self) -> String {
        self.prefix.trim_end_matches('.').into()
    }

    /// A factor of products.
    pub(super) fn operand(&mut self, name: &str, dims: &[usize], init: Init) -> ParamId {
        self.builder.add(format!("{}{name}", self.prefix), dims, Role::Operand, init)
    }

    /// A bias, or a norm's parameter.
    pub(super) fn term(&mut self, name: &str, dims: &[usize], init: Init) -> ParamId {
        self.builder.add(format!("{}{name}", self.prefix), dims, Role::Term, init)
    }

    /// A table of relative position biases: normal with standard deviation 0.02.
    pub fn bias_table(&mut self, name: &str, dims: &[usize]) -> ParamId {
        self.term(name, dims, Init::TruncatedNormal(0.02))
    }
}

/// PyTorch's default for weights and biases: uniform within 1/√fan_in.
pub(super) fn uniform(fan_in: usize) -> Init {
    Init::Uniform(1.0 / (fan_in.max(1) as f64).sqrt())
}
