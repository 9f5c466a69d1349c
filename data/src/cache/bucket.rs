//! A cache in an object store (S3 and what speaks its language): `URL/KEY.zarr/..` are an entry's objects, `URL/names/..` remember
//! lines. An entry is there once its description is, which is written last and removed first. A sample fetches the shard whole:
//! one request, where single chunks would be dozens.

use super::entry::{Blobs, DESCRIPTION, Files, Problem, SHARD};
use super::store::Store;
use crate::error::{Error, Result};
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};
use std::future::Future;
use tokio::runtime::Runtime;

pub(super) struct Bucket {
    store: Box<dyn ObjectStore>,
    prefix: Path,
    runtime: Runtime,
}

impl Bucket {
    /// The URL says where; keys, region and endpoint come from the environment, under the names that AWS's own tools use.
    ///
    /// Errors: a URL that cannot be used, or settings that are missing. Nothing is asked of the store yet.
    pub(super) fn open(url: &str) -> Result<Bucket> {
        let refuse = |problem: String| {
            Error::setting(
                format!("{url}: {problem}"),
                "write s3://BUCKET/FOLDER, and set AWS_REGION and AWS_ACCESS_KEY_ID with its secret",
            )
        };
        let parsed = url.parse().map_err(|e| refuse(format!("{e}")))?;
        let variables = std::env::vars_os().filter_map(|(k, v)| Some((k.into_string().ok()?, v.into_string().ok()?)));
        let (store, prefix) = object_store::parse_url_opts(&parsed, variables).map_err(|e| refuse(line(e)))?;
        Bucket::new(store, prefix).map_err(|e| refuse(e.to_string()))
    }

    /// Under `prefix` in `store`.
    pub(super) fn new(store: Box<dyn ObjectStore>, prefix: Path) -> std::io::Result<Bucket> {
        // one thread waits for the network on behalf of all that ask
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        Ok(Bucket { store, prefix, runtime })
    }

    fn place(&self, key: &str, name: &str) -> Path {
        let parts = format!("{key}.zarr/{name}");
        parts.split('/').fold(self.prefix.clone(), |path, part| path.join(part))
    }

    fn name(&self, name: &str) -> Path {
        self.prefix.clone().join("names").join(name)
    }

    fn wait<T>(&self, future: impl Future<Output = object_store::Result<T>>) -> object_store::Result<T> {
        self.runtime.block_on(future)
    }

    /// An object's bytes; None where there is no such object.
    fn get(&self, at: &Path) -> Result<Option<Vec<u8>>, Problem> {
        match self.wait(async { self.store.get(at).await?.bytes().await }) {
            Ok(bytes) => Ok(Some(bytes.into())),
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(line(error)),
        }
    }

    fn put(&self, at: &Path, bytes: &[u8]) -> Result<(), Problem> {
        self.wait(self.store.put(at, bytes.to_vec().into())).map(drop).map_err(line)
    }
}

impl Store for Bucket {
    /// What cannot be reached counts as not there, and is not removed as damaged: the attempt to write it anew says why.
    fn open(&self, key: &str) -> Option<Result<Files, Problem>> {
        let description = self.get(&self.place(key, DESCRIPTION)).ok()??;
        let shard = self.get(&self.place(key, SHARD)).ok()?;
        Some(shard.map(|shard| Files::of(Blobs { description, shard })).ok_or_else(|| "its shard is gone".into()))
    }

    fn write(&self, key: &str, entry: &Blobs) -> Result<(), Problem> {
        self.put(&self.place(key, SHARD), &entry.shard)?;
        self.put(&self.place(key, DESCRIPTION), &entry.description)
    }

    fn remove(&self, key: &str) {
        for name in [DESCRIPTION, SHARD] {
            // best effort, by the trait's contract
            let _ = self.wait(self.store.delete(&self.place(key, name)));
        }
    }

    fn size(&self, key: &str) -> u64 {
        let of = |name: &str| self.wait(self.store.head(&self.place(key, name))).map_or(0, |about| about.size);
        of(DESCRIPTION) + of(SHARD)
    }

    fn recall(&self, name: &str) -> Option<String> {
        String::from_utf8(self.get(&self.name(name)).ok()??).ok()
    }

    fn remember(&self, name: &str, line: &str) {
        // best effort, by the trait's contract
        let _ = self.put(&self.name(name), line.as_bytes());
    }
}

/// The store's words on one line.
fn line(error: object_store::Error) -> Problem {
    error.to_string().replace('\n', " ")
}
