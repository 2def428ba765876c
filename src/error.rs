//! The crate's error: each module's own, wrapped without a second message.

/// Any error of the crate; its message is the inner module's, one line: what, where, what to do.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Analysis(#[from] crate::analysis::Error),
    #[error(transparent)]
    Backend(#[from] crate::backend::Error),
    #[error(transparent)]
    Cuda(#[from] crate::backend::cuda::LaunchError),
    #[error(transparent)]
    Data(#[from] crate::data::Error),
    #[error(transparent)]
    Engine(#[from] crate::engine::Error),
    #[error(transparent)]
    Hooks(#[from] crate::hooks::Error),
    #[error(transparent)]
    Model(#[from] crate::model::Error),
    #[error(transparent)]
    Report(#[from] crate::report::Error),
    #[error(transparent)]
    Study(#[from] crate::study::Error),
    #[error(transparent)]
    Store(Box<crate::store::Error>),
}

pub type Result<T, E = Error> = std::result::Result<T, E>;

impl From<crate::store::Error> for Error {
    fn from(error: crate::store::Error) -> Self {
        Error::Store(Box::new(error))
    }
}
