//! The commands about templates.

use clap::{Args, Subcommand};

/// The commands.
#[derive(Debug, Subcommand)]
pub(crate) enum TemplateCommand {
    /// Make the template for this configuration, unless it exists
    Create(TemplateCreateArgs),
    /// List the templates
    List,
    /// Remove templates
    Rm(TemplateNamesArgs),
    /// Check that templates are whole and of this version
    Verify(TemplateNamesArgs),
    /// Remove the least used templates until the others take at most the configured space
    Prune(TemplatePruneArgs),
}

/// Arguments of `template create`.
#[derive(Args, Debug)]
pub(crate) struct TemplateCreateArgs {
    /// Do nothing if another process makes the same template, and prune afterwards; used by create and run
    #[arg(long, hide = true)]
    pub(crate) background: bool,
}

/// Arguments that name templates.
#[derive(Args, Debug)]
pub(crate) struct TemplateNamesArgs {
    /// Names of templates, as listed
    #[arg(value_name = "NAME", required_unless_present = "all")]
    pub(crate) names: Vec<String>,
    /// All templates
    #[arg(long)]
    pub(crate) all: bool,
}

/// Arguments of `template prune`.
#[derive(Args, Debug)]
pub(crate) struct TemplatePruneArgs {
    /// Most MiB that templates may take [default: template_max of the configuration]
    #[arg(long, value_name = "MIB")]
    pub(crate) max: Option<u64>,
}
