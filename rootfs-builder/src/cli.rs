//! The command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

/// Builds vmrt's guest initramfs and example bundles.
#[derive(Debug, Parser)]
#[command(version)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Build the guest's initramfs: the agent as /init and the few directories and nodes it needs
    Initramfs {
        /// The agent: a statically linked executable
        #[arg(long, value_name = "PATH")]
        agent: PathBuf,
        /// Where to write the archive
        #[arg(long, value_name = "FILE")]
        output: PathBuf,
    },
    /// Make an OCI bundle: a directory with config.json and rootfs/
    Bundle {
        #[command(subcommand)]
        kind: Box<BundleKind>,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum BundleKind {
    /// One static busybox with all its applets (from this machine, or from Debian's busybox-static)
    Busybox {
        #[command(flatten)]
        bundle: BundleArgs,
    },
    /// Debian bookworm, as small as it installs (by mmdebstrap)
    Debian {
        /// Further packages to install, as python3,curl
        #[arg(long, value_name = "PACKAGES", value_delimiter = ',')]
        include: Vec<String>,
        #[command(flatten)]
        bundle: BundleArgs,
    },
    /// Any root file system: a directory, or a tar archive, compressed or not
    Rootfs {
        /// The directory or archive
        #[arg(long, value_name = "DIR|TAR")]
        from: PathBuf,
        #[command(flatten)]
        bundle: BundleArgs,
    },
    /// An image of an OCI image layout on disk
    Oci {
        /// The layout's directory, which contains index.json and blobs/
        #[arg(long, value_name = "DIR")]
        layout: PathBuf,
        /// The image's org.opencontainers.image.ref.name; required if there are several images
        #[arg(long = "ref", value_name = "NAME")]
        reference: Option<String>,
        #[command(flatten)]
        bundle: BundleArgs,
    },
}

/// The bundle's path and the settings of its config.json.
#[derive(Debug, Args)]
pub(crate) struct BundleArgs {
    /// The bundle's directory; it must be absent or empty
    #[arg(long, value_name = "DIR")]
    pub(crate) output: PathBuf,
    /// The container's host name
    #[arg(long, default_value = "vmrt")]
    pub(crate) hostname: String,
    /// The container's memory limit, as 256M or 1G
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub(crate) memory: Option<i64>,
    /// Memory of the virtual machine, as 256M or 1G
    #[arg(long, value_name = "SIZE")]
    pub(crate) vm_memory: Option<String>,
    /// Number of vCPUs of the virtual machine
    #[arg(long, value_name = "NUMBER")]
    pub(crate) vcpus: Option<u8>,
    /// Give the container's process a terminal
    #[arg(long)]
    pub(crate) terminal: bool,
    /// Make the container's root file system read-only
    #[arg(long)]
    pub(crate) read_only: bool,
    /// The process's working directory
    #[arg(long, value_name = "PATH")]
    pub(crate) cwd: Option<PathBuf>,
    /// A variable of the process's environment; may be repeated
    #[arg(long, value_name = "NAME=VALUE")]
    pub(crate) env: Vec<String>,
    /// A directory or file of the host to mount in the container; may be repeated
    #[arg(long, value_name = "SOURCE:DESTINATION[:ro]", value_parser = parse_volume)]
    pub(crate) volume: Vec<Volume>,
    /// The process's user and group id, as 1000 or 1000:1000
    #[arg(long, value_name = "UID[:GID]", value_parser = parse_user)]
    pub(crate) user: Option<(u32, u32)>,
    /// Give the process every capability, not only those of `runc spec`
    #[arg(long)]
    pub(crate) all_capabilities: bool,
    /// The program to run and its arguments, after `--`
    #[arg(last = true, value_name = "ARGS")]
    pub(crate) args: Vec<String>,
}

/// A bind mount: the host's path and the container's path.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Volume {
    pub(crate) source: PathBuf,
    pub(crate) destination: PathBuf,
    pub(crate) read_only: bool,
}

/// A number of bytes, with an optional suffix of K, M, G or T (powers of 1024).
fn parse_size(text: &str) -> Result<i64, String> {
    let (digits, shift) = match text.chars().last().map(|suffix| suffix.to_ascii_uppercase()) {
        Some('K') => (&text[..text.len() - 1], 10),
        Some('M') => (&text[..text.len() - 1], 20),
        Some('G') => (&text[..text.len() - 1], 30),
        Some('T') => (&text[..text.len() - 1], 40),
        _ => (text, 0),
    };
    let number: i64 = digits.parse().map_err(|error| format!("{error}"))?;
    number.checked_mul(1 << shift).filter(|size| *size > 0).ok_or_else(|| "not a valid size".to_string())
}

fn parse_user(text: &str) -> Result<(u32, u32), String> {
    let number = |text: &str| text.parse::<u32>().map_err(|error| format!("{text:?}: {error}"));
    match text.split_once(':') {
        Some((user, group)) => Ok((number(user)?, number(group)?)),
        None => Ok((number(text)?, 0)),
    }
}

fn parse_volume(text: &str) -> Result<Volume, String> {
    let (source, rest) = text.split_once(':').ok_or("no destination")?;
    let (destination, read_only) = match rest.split_once(':') {
        None | Some((_, "rw")) => (rest.split(':').next().unwrap_or_default(), false),
        Some((destination, "ro")) => (destination, true),
        Some((_, other)) => return Err(format!("{other:?} is neither ro nor rw")),
    };
    let volume = Volume { source: source.into(), destination: destination.into(), read_only };
    let absolute = volume.source.is_absolute() && volume.destination.is_absolute();
    absolute.then_some(volume).ok_or_else(|| "both paths must be absolute".to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_definition_is_valid() {
        <Cli as clap::CommandFactory>::command().debug_assert();
    }

    #[test]
    fn sizes_have_suffixes() {
        assert_eq!(parse_size("4096"), Ok(4096));
        assert_eq!(parse_size("256M"), Ok(256 << 20));
        assert_eq!(parse_size("1g"), Ok(1 << 30));
        assert!(parse_size("M").is_err());
        assert!(parse_size("0").is_err());
        assert!(parse_size("9999999999T").is_err());
        assert!(parse_size("12€").is_err());
    }

    #[test]
    fn a_user_has_an_optional_group() {
        assert_eq!(parse_user("1000"), Ok((1000, 0)));
        assert_eq!(parse_user("1000:50"), Ok((1000, 50)));
        assert!(parse_user("nobody").is_err());
    }

    #[test]
    fn a_volume_has_two_absolute_paths() {
        let volume = |read_only| Volume { source: "/a".into(), destination: "/b".into(), read_only };
        assert_eq!(parse_volume("/a:/b"), Ok(volume(false)));
        assert_eq!(parse_volume("/a:/b:rw"), Ok(volume(false)));
        assert_eq!(parse_volume("/a:/b:ro"), Ok(volume(true)));
        for bad in ["/a", "a:/b", "/a:b", "/a:/b:rx", ":"] {
            assert!(parse_volume(bad).is_err(), "{bad}");
        }
    }
}
