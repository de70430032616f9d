//! `vmrt template`: the templates from which machines start.

use std::time::UNIX_EPOCH;

use crate::base::config::Config;
use crate::base::timestamp;
use crate::cli::{TemplateCommand, TemplateCreateArgs, TemplateNamesArgs};
use crate::commands::error::Error;
use crate::sandbox::context::Context;
use crate::sandbox::template::{self, TemplateStore, TemplateStoreError};

/// Bytes of a MiB.
const MIB: u64 = 1 << 20;

pub(crate) fn run(context: &Context, command: TemplateCommand) -> Result<u8, Error> {
    let config = context.config()?;
    let store = TemplateStore::new(&config);
    match command {
        TemplateCommand::Create(args) => create(context, &config, &args)?,
        TemplateCommand::List => list(&store)?,
        TemplateCommand::Rm(args) => names(&store, args)?.iter().try_for_each(|name| store.remove(name))?,
        TemplateCommand::Verify(args) => verify(&store, args)?,
        TemplateCommand::Prune(args) => {
            let max = args.max.unwrap_or(config.template_max_mib).saturating_mul(MIB);
            store.prune(max)?.iter().for_each(|template| println!("{}", template.name));
        }
    }
    Ok(0)
}

fn create(context: &Context, config: &Config, args: &TemplateCreateArgs) -> Result<(), Error> {
    if args.background {
        return Ok(template::make_for_later(config, context.caller, &context.log)?);
    }
    let made = template::make(config, context.caller, true, &context.log)?;
    made.iter().for_each(|path| println!("{}", path.display()));
    Ok(())
}

fn list(store: &TemplateStore) -> Result<(), Error> {
    println!("{:<18}{:<10}{:<32}PATH", "NAME", "MIB", "USED");
    for template in store.list()? {
        let used = timestamp::rfc3339_nanoseconds(template.used.max(UNIX_EPOCH));
        println!("{:<18}{:<10}{used:<32}{}", template.name, template.size.div_ceil(MIB), template.path.display());
    }
    Ok(())
}

fn verify(store: &TemplateStore, args: TemplateNamesArgs) -> Result<(), Error> {
    for name in names(store, args)? {
        store.verify(&name)?;
        println!("{name} is whole");
    }
    Ok(())
}

fn names(store: &TemplateStore, args: TemplateNamesArgs) -> Result<Vec<String>, TemplateStoreError> {
    if !args.all {
        return Ok(args.names);
    }
    Ok(store.list()?.into_iter().map(|template| template.name).collect())
}
