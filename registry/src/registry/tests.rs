use std::io::Read;

use super::*;
use crate::catalog::Slot;
use crate::import::{self, ModelFacts};

fn registry() -> (tempfile::TempDir, Registry) {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&dir.path().join("state.db"), &SCHEMAS).unwrap();
    let registry = Registry::open(dir.path(), store, &Options::default()).unwrap();
    (dir, registry)
}

/// Imports a file with these bytes, installs and activates it.
fn import(registry: &Registry, bytes: &[u8]) -> Digest {
    let path = registry.dir().join("tiny.gguf");
    std::fs::write(&path, bytes).unwrap();
    let facts = ModelFacts { architecture: "qwen3".into(), ..ModelFacts::default() };
    let name = "acme/tiny:v1".parse().unwrap();
    let imported = import::gguf_file(registry, &path, &name, &facts).unwrap();
    let blobs = registry.blobs().clone();
    registry
        .store()
        .write_blocking(move |tx| {
            let digest = imported.signed.digest();
            catalog::install(tx, &imported.signed, &blobs, 10)?;
            catalog::activate(tx, &name, &digest, 10)?;
            Ok::<_, CatalogError>(digest)
        })
        .unwrap()
}

fn model() -> ModelRef {
    "acme/tiny:v1".parse().unwrap()
}

#[test]
fn an_imported_file_loads_byte_for_byte() {
    let (_dir, registry) = registry();
    let digest = import(&registry, b"weights");
    let model = registry.verified_model(&model()).unwrap();
    assert_eq!(model.digest, digest);
    assert_eq!(model.manifest.architecture, "qwen3");
    let mut bytes = Vec::new();
    model.weights.verify(std::slice::from_ref(&(0..7))).unwrap();
    model.weights.file().unwrap().read_to_end(&mut bytes).unwrap();
    assert_eq!(bytes, b"weights");
}

#[test]
fn the_same_import_again_changes_nothing_and_another_is_the_next_release() {
    let (_dir, registry) = registry();
    let first = import(&registry, b"weights");
    assert_eq!(import(&registry, b"weights"), first);
    let second = import(&registry, b"better weights");
    let previous = registry
        .store()
        .read_blocking(|c| catalog::slot(c, &model().name, Slot::Previous))
        .unwrap();
    assert_eq!(previous, Some(first));
    let loaded = registry.verified_model(&model()).unwrap();
    assert_eq!((loaded.digest, loaded.manifest.release), (second, 2));
}

#[test]
fn tampered_weights_are_not_loaded() {
    let (_dir, registry) = registry();
    import(&registry, b"weights");
    let path = registry.verified_model(&model()).unwrap().weights.path().to_owned();
    std::fs::remove_file(&path).unwrap();
    std::fs::write(&path, b"Weights").unwrap();
    let refused = registry.verified_model(&model());
    let Err(LoadError::Blob { source: BlobError::Corrupt { .. }, .. }) = refused else {
        panic!("{refused:?}")
    };
    import(&registry, b"weights");
    registry.verified_model(&model()).unwrap();
}

#[test]
fn a_model_signed_by_another_owner_is_not_loaded() {
    let (dir, registry) = registry();
    import(&registry, b"weights");
    std::fs::remove_file(dir.path().join("owner.key")).unwrap();
    let stranger =
        Registry::open(dir.path(), registry.store().clone(), &Options::default()).unwrap();
    let refused = stranger.verified_model(&model());
    let Err(LoadError::Owner { source: OwnerError::OtherKey { .. }, .. }) = refused else {
        panic!("{refused:?}")
    };
}
