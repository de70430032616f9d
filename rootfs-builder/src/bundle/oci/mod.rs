//! Unpacks an image of an OCI image layout on disk: index, manifest, configuration and layers, each checked against its
//! digest (image-spec: image-layout.md, image-index.md, manifest.md, config.md, layer.md).

mod blob;
mod image_root;
mod layer;
mod user;

use std::io;
use std::path::{Path, PathBuf};

use oci_spec::image::{Arch, Descriptor, Digest, ImageConfiguration, ImageIndex, ImageManifest, MediaType, Os};
use thiserror::Error;

use super::config::ImageDefaults;

const REF_NAME: &str = "org.opencontainers.image.ref.name";

/// Indexes may refer to indexes. No image needs a greater depth.
const MAX_INDEX_DEPTH: usize = 4;

/// The reason why an image cannot be unpacked.
#[derive(Debug, Error)]
pub(crate) enum Error {
    #[error("read {}", .path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("parse {what}")]
    Json { what: String, source: serde_json::Error },
    #[error("{digest}: the digest is not one of SHA-256")]
    DigestAlgorithm { digest: Digest },
    #[error("{what} is not what its digest says: expected {expected}, found {found}")]
    Digest { what: String, expected: String, found: String },
    #[error("{what} is {size} bytes long, more than the {limit} such a document may have")]
    TooLarge { what: String, size: u64, limit: u64 },
    #[error("no image {wanted}; there are: {names}")]
    NoSuchImage { wanted: String, names: String },
    #[error("several images, choose one with --ref: {names}")]
    Ambiguous { names: String },
    #[error("the image is not for {os} on {architecture}; there are: {platforms}")]
    Platform { os: Os, architecture: Arch, platforms: String },
    #[error("the image's indexes are nested too deeply")]
    IndexDepth,
    #[error("unknown media type of a {what}: {media_type}")]
    MediaType { what: &'static str, media_type: MediaType },
    #[error("the manifest has {layers} layers, the configuration {diff_ids}")]
    LayerCount { layers: usize, diff_ids: usize },
    #[error("unpack layer {digest}: {}", .entry.display())]
    Unpack { digest: Digest, entry: PathBuf, source: io::Error },
    #[error("the image's user {user:?} is not in its /etc/passwd or /etc/group")]
    UnknownUser { user: String },
}

/// Unpacks the image with the name `reference`, or else the only image, into `rootfs`.
pub(super) fn fill(layout: &Path, reference: Option<&str>, rootfs: &Path) -> Result<ImageDefaults, Error> {
    let index: ImageIndex = blob::read_json(&layout.join("index.json"), "index.json")?;
    let manifest = find_manifest(layout, select_image(&index, reference)?, MAX_INDEX_DEPTH)?;
    let config: ImageConfiguration = blob::document(layout, manifest.config(), "the image's configuration")?;
    check_platform(&config)?;
    unpack_layers(layout, &manifest, config.rootfs().diff_ids(), rootfs)?;
    defaults(&config, rootfs)
}

/// The image with the name or digest `reference`, or else the only image of the layout.
fn select_image<'a>(index: &'a ImageIndex, reference: Option<&str>) -> Result<&'a Descriptor, Error> {
    let name = |descriptor: &Descriptor| descriptor.annotations().as_ref()?.get(REF_NAME).cloned();
    let names = || index.manifests().iter().map(|one| name(one).unwrap_or_else(|| one.digest().to_string()));
    let names = || names().collect::<Vec<_>>().join(", ");
    match (reference, index.manifests().as_slice()) {
        (Some(wanted), all) => all
            .iter()
            .find(|one| name(one).as_deref() == Some(wanted) || one.digest().as_ref() == wanted)
            .ok_or_else(|| Error::NoSuchImage { wanted: wanted.into(), names: names() }),
        (None, [only]) => Ok(only),
        (None, []) => Err(Error::NoSuchImage { wanted: "at all".into(), names: "none".into() }),
        (None, _) => Err(Error::Ambiguous { names: names() }),
    }
}

/// Resolves an image's index to the manifest for this machine.
fn find_manifest(layout: &Path, descriptor: &Descriptor, depth: usize) -> Result<ImageManifest, Error> {
    match descriptor.media_type() {
        MediaType::ImageManifest => blob::document(layout, descriptor, "the image's manifest"),
        MediaType::Other(docker) if docker.ends_with("distribution.manifest.v2+json") => {
            blob::document(layout, descriptor, "the image's manifest")
        }
        MediaType::ImageIndex if depth == 0 => Err(Error::IndexDepth),
        MediaType::ImageIndex => {
            let index: ImageIndex = blob::document(layout, descriptor, "the image's index")?;
            find_manifest(layout, manifest_for_this_machine(&index)?, depth - 1)
        }
        media_type => Err(Error::MediaType { what: "manifest", media_type: media_type.clone() }),
    }
}

fn manifest_for_this_machine(index: &ImageIndex) -> Result<&Descriptor, Error> {
    let here = |one: &&Descriptor| {
        one.platform().as_ref().is_none_or(|at| *at.os() == Os::Linux && *at.architecture() == Arch::default())
    };
    index.manifests().iter().find(here).ok_or_else(|| {
        let platforms = index.manifests().iter().filter_map(|one| one.platform().as_ref());
        let platforms = platforms.map(|at| format!("{}/{}", at.os(), at.architecture())).collect::<Vec<_>>();
        Error::Platform { os: Os::Linux, architecture: Arch::default(), platforms: platforms.join(", ") }
    })
}

fn check_platform(config: &ImageConfiguration) -> Result<(), Error> {
    match *config.os() == Os::Linux && *config.architecture() == Arch::default() {
        true => Ok(()),
        false => Err(Error::Platform {
            os: Os::Linux,
            architecture: Arch::default(),
            platforms: format!("{}/{}", config.os(), config.architecture()),
        }),
    }
}

fn unpack_layers(layout: &Path, manifest: &ImageManifest, diff_ids: &[String], rootfs: &Path) -> Result<(), Error> {
    let layers = manifest.layers();
    if layers.len() != diff_ids.len() {
        return Err(Error::LayerCount { layers: layers.len(), diff_ids: diff_ids.len() });
    }
    for (number, (descriptor, diff_id)) in layers.iter().zip(diff_ids).enumerate() {
        let kib = descriptor.size().div_ceil(1024);
        eprintln!("rootfs-builder: layer {} of {}, {kib} KiB", number + 1, layers.len());
        layer::apply(layout, descriptor, diff_id, rootfs)?;
    }
    Ok(())
}

/// The process that the image describes (image-spec: conversion.md).
fn defaults(config: &ImageConfiguration, rootfs: &Path) -> Result<ImageDefaults, Error> {
    let Some(config) = config.config() else { return Ok(ImageDefaults::default()) };
    let is_not_empty = |text: &String| !text.is_empty();
    let user = config.user().as_ref().filter(|user| is_not_empty(user));
    Ok(ImageDefaults {
        args: [config.entrypoint().clone(), config.cmd().clone()].into_iter().flatten().flatten().collect(),
        env: config.env().clone().unwrap_or_default(),
        cwd: config.working_dir().clone().filter(is_not_empty).map(PathBuf::from),
        user: user.map(|user| user::resolve(user, rootfs)).transpose()?,
        annotations: config.labels().clone().unwrap_or_default(),
    })
}
