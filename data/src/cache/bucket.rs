//! A cache in an object store (S3 and what speaks its language): `URL/KEY.zarr/..` are an entry's objects, `URL/names/..` remember
//! lines. An entry is there once its description is, which is written last and removed first. A sample fetches the shard whole:
//! one request, where single chunks would be dozens.

use super::entry::{Blobs, DESCRIPTION, Fault, Files, Problem, SHARD};
use super::store::Store;
use crate::error::{Error, Result};
use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey};
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt, ObjectStoreScheme};
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
    /// Errors: a URL that cannot be used, settings with which the store does not answer.
    pub(super) fn open(url: &str) -> Result<Bucket> {
        let variables = std::env::vars_os().filter_map(|(k, v)| Some((k.into_string().ok()?, v.into_string().ok()?)));
        Bucket::with(url, variables).map_err(|problem| {
            Error::setting(
                format!("{url}: {problem}"),
                "write s3://BUCKET/FOLDER, and set AWS_REGION, AWS_ACCESS_KEY_ID with its secret, and where it is not Amazon's \
                 AWS_ENDPOINT_URL, with AWS_ALLOW_HTTP=true for http",
            )
        })
    }

    /// With these variables, of which AWS's alone count. The store is asked for an object that need not be there: what it then says
    /// of the settings would otherwise be said of every volume.
    pub(super) fn with(url: &str, variables: impl Iterator<Item = (String, String)>) -> Result<Bucket, Problem> {
        let parsed = url.parse().map_err(|e| format!("{e}"))?;
        let (scheme, prefix) = ObjectStoreScheme::parse(&parsed).map_err(|e| line(e.into()))?;
        if scheme != ObjectStoreScheme::AmazonS3 {
            return Err("not a store that speaks S3's language".into());
        }
        let settings = variables.filter(|(name, _)| name.starts_with("AWS_")).filter_map(|(name, value)| {
            let key: AmazonS3ConfigKey = name.to_ascii_lowercase().parse().ok()?;
            Some((key, value))
        });
        let builder = settings.fold(AmazonS3Builder::new().with_url(url), |b, (key, value)| b.with_config(key, value));
        let store = builder.build().map_err(line)?;
        let bucket = Bucket::new(Box::new(store), prefix).map_err(|e| e.to_string())?;
        bucket.answers()?;
        Ok(bucket)
    }

    /// Errors with the store's words, unless it has no such object, or does not say so to these keys, which may still write.
    fn answers(&self) -> Result<(), Problem> {
        match self.wait(self.store.head(&self.name("any"))) {
            Ok(_) | Err(object_store::Error::NotFound { .. } | object_store::Error::PermissionDenied { .. }) => Ok(()),
            Err(error) => Err(line(error)),
        }
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
    fn open(&self, key: &str) -> Option<Result<Files, Fault>> {
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
