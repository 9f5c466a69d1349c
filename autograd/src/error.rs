use thiserror::Error;

pub type Result<T, E = Error> = std::result::Result<T, E>;

#[derive(Debug, Error, Clone, PartialEq)]
pub enum Error {
    #[error(transparent)]
    Engine(#[from] engine::Error),
    #[error("backward of {rule}: {source}")]
    Backward { rule: &'static str, source: engine::Error },
    #[error("backward did not reach {}: use them in the forward pass, or leave them out of the trainable parameters", .0.join(", "))]
    Unreached(Vec<String>),
    #[error("backward: the loss does not depend on any tracked value")]
    Untracked,
    #[error(
        "{op}: a value of another tape; compute all on one tape, and give a checkpointed block what it uses as one of its inputs"
    )]
    OtherTape { op: &'static str },
    #[error("backward: a gradient of shape {got:?} for a value of shape {want:?}")]
    Cotangent { got: Vec<usize>, want: Vec<usize> },
    #[error("there is no parameter named {0}")]
    NoSuchParameter(String),
    #[error("two parameters are named {0}")]
    DuplicateParameter(String),
}
