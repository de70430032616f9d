//! `bundle oci`, with image layouts that the tests create.

use std::collections::HashMap;
use std::fs;
use std::io::Write;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;
use std::process::{Command, Output};

use nix::unistd::{getgid, getuid};
use oci_spec::runtime::Spec;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tar::{Builder, EntryType, Header};
use tempfile::TempDir;

/// An image layout that a test creates.
struct Layout {
    folder: TempDir,
    layers: Vec<Value>,
    diff_ids: Vec<String>,
}

fn digest(bytes: &[u8]) -> String {
    format!("sha256:{}", Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect::<String>())
}

impl Layout {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir_all(folder.path().join("layout/blobs/sha256")).unwrap();
        Self { folder, layers: Vec::new(), diff_ids: Vec::new() }
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.folder.path().join(name)
    }

    fn blob(&self, bytes: &[u8], media_type: &str) -> Value {
        let digest = digest(bytes);
        fs::write(self.path("layout/blobs").join(digest.replace(':', "/")), bytes).unwrap();
        json!({"mediaType": media_type, "digest": digest, "size": bytes.len()})
    }

    fn layer(&mut self, archive: &[u8], compression: &str) {
        let bytes = match compression {
            "+gzip" => {
                let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
                encoder.write_all(archive).unwrap();
                encoder.finish().unwrap()
            }
            "+zstd" => zstd::encode_all(archive, 1).unwrap(),
            _ => archive.to_vec(),
        };
        let media_type = format!("application/vnd.oci.image.layer.v1.tar{compression}");
        self.layers.push(self.blob(&bytes, &media_type));
        self.diff_ids.push(digest(archive));
    }

    /// Writes configuration, manifest and index. The index has these names.
    fn finish(&self, config: &Value, names: &[&str]) {
        let configuration = json!({"architecture": "amd64", "os": "linux", "config": config,
            "rootfs": {"type": "layers", "diff_ids": self.diff_ids}});
        let configuration = self.blob(configuration.to_string().as_bytes(), "application/vnd.oci.image.config.v1+json");
        let manifest = json!({"schemaVersion": 2, "config": configuration, "layers": self.layers});
        let manifest = self.blob(manifest.to_string().as_bytes(), "application/vnd.oci.image.manifest.v1+json");
        let mut foreign = manifest.clone();
        foreign["platform"] = json!({"os": "linux", "architecture": "s390x"});
        let mut native = manifest;
        native["platform"] = json!({"os": "linux", "architecture": "amd64"});
        let inner = json!({"schemaVersion": 2, "manifests": [foreign, native]});
        let inner = self.blob(inner.to_string().as_bytes(), "application/vnd.oci.image.index.v1+json");
        let named = |name: &&str| {
            let mut entry = inner.clone();
            entry["annotations"] = json!({"org.opencontainers.image.ref.name": name});
            entry
        };
        let index = json!({"schemaVersion": 2, "manifests": names.iter().map(named).collect::<Vec<_>>()});
        fs::write(self.path("layout/index.json"), index.to_string()).unwrap();
    }

    fn unpack(&self, more: &[&str]) -> Output {
        let arguments = ["bundle", "oci", "--layout", "layout", "--output", "bundle"];
        let mut command = Command::new(env!("CARGO_BIN_EXE_rootfs-builder"));
        command.args(arguments).args(more).current_dir(self.folder.path()).output().unwrap()
    }

    fn unpacked(&self, more: &[&str]) -> HashMap<String, String> {
        let output = self.unpack(more);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        contents(&self.path("bundle/rootfs"))
    }
}

/// All regular files below a directory, with their content.
fn contents(root: &Path) -> HashMap<String, String> {
    let mut found = HashMap::new();
    let mut folders = vec![root.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap().map(Result::unwrap) {
            match entry.file_type().unwrap() {
                kind if kind.is_dir() => folders.push(entry.path()),
                kind if kind.is_file() => {
                    let name = entry.path().strip_prefix(root).unwrap().to_str().unwrap().to_string();
                    found.insert(name, fs::read_to_string(entry.path()).unwrap());
                }
                _ => {}
            }
        }
    }
    found
}

/// An archive of entries: `name/` is a directory, `name -> target` a link, `name => target` a hard link.
fn archive(entries: &[(&str, &str)]) -> Vec<u8> {
    let mut builder = Builder::new(Vec::new());
    for (name, content) in entries {
        let mut header = Header::new_gnu();
        header.set_uid(getuid().as_raw().into());
        header.set_gid(getgid().as_raw().into());
        header.set_mode(0o755);
        header.set_size(0);
        if let Some((name, target)) = name.split_once(" -> ") {
            header.set_entry_type(EntryType::Symlink);
            builder.append_link(&mut header, name, target).unwrap();
        } else if let Some((name, target)) = name.split_once(" => ") {
            header.set_entry_type(EntryType::Link);
            builder.append_link(&mut header, name, target).unwrap();
        } else {
            header.set_entry_type(if name.ends_with('/') { EntryType::Directory } else { EntryType::Regular });
            header.set_size(content.len().try_into().unwrap());
            builder.append_data(&mut header, name, content.as_bytes()).unwrap();
        }
    }
    builder.into_inner().unwrap()
}

fn message(output: &Output) -> String {
    assert_eq!(output.status.code(), Some(1));
    String::from_utf8_lossy(&output.stderr).lines().last().unwrap().to_string()
}

#[test]
fn layers_add_change_and_hide_files() {
    let mut layout = Layout::new();
    layout.layer(&archive(&[("a/", ""), ("a/kept", "1"), ("a/gone", "1"), ("b/", ""), ("b/old", "1")]), "");
    layout.layer(&archive(&[("a/.wh.gone", ""), ("b/new", "2"), ("b/.wh..wh..opq", ""), ("dir/x", "2")]), "+gzip");
    layout.layer(&archive(&[("a/kept", "3"), ("dir", "now a file"), ("b/hard => b/new", "")]), "+zstd");
    layout.finish(&json!({}), &["latest"]);
    let expected = [("a/kept", "3"), ("b/new", "2"), ("b/hard", "2"), ("dir", "now a file")];
    let expected = expected.into_iter().map(|(name, content)| (name.to_string(), content.to_string()));
    assert_eq!(layout.unpacked(&[]), expected.collect());
    assert_eq!(fs::metadata(layout.path("bundle/rootfs/b/hard")).unwrap().nlink(), 2);
}

#[test]
fn an_absolute_link_resolves_inside_the_image() {
    let mut layout = Layout::new();
    let outside = layout.path("outside");
    fs::create_dir(&outside).unwrap();
    let escape = format!("trap -> {}", outside.display());
    layout.layer(&archive(&[("var/run -> /run", ""), (&escape, ""), ("up -> ../../..", "")]), "");
    layout.layer(&archive(&[("var/run/pid", "7"), ("trap/file", "x"), ("up/file", "y")]), "");
    layout.finish(&json!({}), &["latest"]);
    let found = layout.unpacked(&[]);
    assert_eq!((found["run/pid"].as_str(), found["file"].as_str()), ("7", "y"));
    assert_eq!(found.len(), 3);
    assert_eq!(fs::read_dir(outside).unwrap().count(), 0);
}

#[test]
fn the_process_is_the_one_the_image_configures() {
    let mut layout = Layout::new();
    let passwd = "root:x:0:0::/:/bin/sh\nweb:x:33:34::/:/bin/sh\n";
    layout.layer(&archive(&[("etc/passwd", passwd), ("etc/group", "extra:x:7:web\n")]), "+gzip");
    let config = json!({"Entrypoint": ["serve"], "Cmd": ["--port", "80"], "Env": ["PATH=/opt/bin", "A=b"],
        "WorkingDir": "/srv", "User": "web", "Labels": {"who": "me"}});
    layout.finish(&config, &["latest"]);
    layout.unpacked(&[]);
    let spec = Spec::load(layout.path("bundle/config.json")).unwrap();
    let process = spec.process().as_ref().unwrap();
    assert_eq!(process.args().as_ref().unwrap(), &["serve", "--port", "80"]);
    assert_eq!(process.env().as_ref().unwrap(), &["PATH=/opt/bin", "TERM=xterm", "A=b"]);
    assert_eq!(process.cwd(), Path::new("/srv"));
    assert_eq!((process.user().uid(), process.user().gid()), (33, 34));
    assert_eq!(process.user().additional_gids().as_deref(), Some(&[7][..]));
    assert_eq!(spec.annotations().as_ref().unwrap()["who"], "me");
}

#[test]
fn an_image_is_found_by_its_name() {
    let mut layout = Layout::new();
    layout.layer(&archive(&[("file", "1")]), "");
    layout.finish(&json!({}), &["one", "two"]);
    assert!(message(&layout.unpack(&[])).ends_with("several images, choose one with --ref: one, two"));
    assert!(message(&layout.unpack(&["--ref", "three"])).ends_with("no image three; there are: one, two"));
    assert_eq!(layout.unpacked(&["--ref", "two"]).len(), 1);
}

#[test]
fn changed_blobs_are_refused_and_leave_nothing() {
    for changed in 0..4 {
        let mut layout = Layout::new();
        layout.layer(&archive(&[("file", "1")]), "");
        layout.finish(&json!({}), &["latest"]);
        let mut blobs: Vec<_> = fs::read_dir(layout.path("layout/blobs/sha256")).unwrap().collect();
        blobs.sort_by_key(|blob| blob.as_ref().unwrap().path());
        let path = blobs[changed].as_ref().unwrap().path();
        let mut bytes = fs::read(&path).unwrap();
        bytes.push(b' ');
        fs::write(&path, bytes).unwrap();
        let message = message(&layout.unpack(&[]));
        assert!(message.contains("is not what its digest says"), "{message}");
        assert_eq!(fs::read_dir(layout.folder.path()).unwrap().count(), 1);
    }
}

#[test]
fn a_layer_that_is_not_the_one_the_configuration_names_is_refused() {
    let mut layout = Layout::new();
    layout.layer(&archive(&[("file", "1")]), "+gzip");
    layout.diff_ids = vec![digest(b"another archive")];
    layout.finish(&json!({}), &["latest"]);
    assert!(message(&layout.unpack(&[])).contains("a layer's archive is not what its digest says"));
}

#[test]
fn a_path_out_of_the_image_is_refused() {
    let mut builder = Builder::new(Vec::new());
    let mut header = Header::new_gnu();
    header.as_gnu_mut().unwrap().name[..9].copy_from_slice(b"a/../../b");
    header.set_size(0);
    header.set_cksum();
    builder.append(&header, std::io::empty()).unwrap();
    let mut layout = Layout::new();
    layout.layer(&builder.into_inner().unwrap(), "");
    layout.finish(&json!({}), &["latest"]);
    assert!(message(&layout.unpack(&[])).ends_with("a/../../b: the path leads out of the image"));
}

#[test]
fn a_fifo_is_unpacked_as_a_fifo() {
    let mut builder = Builder::new(Vec::new());
    let mut header = Header::new_gnu();
    header.set_entry_type(EntryType::Fifo);
    header.set_path("pipe").unwrap();
    header.set_uid(getuid().as_raw().into());
    header.set_gid(getgid().as_raw().into());
    header.set_mode(0o622);
    header.set_size(0);
    header.set_cksum();
    builder.append(&header, std::io::empty()).unwrap();
    let mut layout = Layout::new();
    layout.layer(&builder.into_inner().unwrap(), "");
    layout.finish(&json!({}), &["latest"]);
    layout.unpacked(&[]);
    let metadata = fs::metadata(layout.path("bundle/rootfs/pipe")).unwrap();
    assert!(metadata.file_type().is_fifo());
    assert_eq!(metadata.mode() & 0o7777, 0o622);
}
