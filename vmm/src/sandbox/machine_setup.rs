//! Assembles the machine of a sandbox: from a template, or to boot.

use std::os::fd::OwnedFd;

use super::launch::LaunchError;
use super::template_saver::TemplateSaver;
use crate::config::TemplateUse;
use crate::event_loop::LoopHandle;
use crate::fs::{Limits, ProcFds, Server, SharesHandle};
use crate::machine::assembly::{AssembledMachine, AssemblyError, assemble};
use crate::machine::resources::Resources;
use crate::machine::template::Template;
use crate::vsock::Ports;

/// What a machine is assembled from.
pub(super) struct MachineSetup {
    pub(super) resources: Resources,
    pub(super) event_loop: LoopHandle,
    pub(super) shares: SharesHandle,
    pub(super) proc_fds: ProcFds,
    pub(super) node_maker: OwnedFd,
    pub(super) ports: Ports,
}

/// How a machine starts.
pub(super) enum MachineOrigin {
    Template,
    Boot {
        /// Why the template cannot be used, if there is one that is to be replaced.
        refusal: Option<String>,
    },
}

/// A machine that was assembled.
pub(super) struct SetUpMachine {
    pub(super) assembled: AssembledMachine,
    /// The thread that saves the machine, if it becomes a template.
    pub(super) saver: Option<TemplateSaver>,
    pub(super) origin: MachineOrigin,
}

impl MachineSetup {
    /// Assembles the machine. `template` is the file that `template_use` is about.
    ///
    /// # Errors
    /// The machine cannot be assembled, even without a template.
    pub(super) fn run(
        mut self,
        template_use: TemplateUse,
        template: Option<OwnedFd>,
    ) -> Result<SetUpMachine, LaunchError> {
        if let (TemplateUse::Start, Some(file)) = (template_use, template) {
            let (assembled, origin) = self.start_from(file)?;
            return Ok(SetUpMachine { assembled, saver: None, origin });
        }
        let assembled = self.assemble(None)?;
        let start = |file| TemplateSaver::start(assembled.devices.clone(), file);
        let saver = self.resources.new_template.take().map(start).transpose();
        let saver = saver.map_err(|error| LaunchError::System("start the thread that saves the machine", error))?;
        Ok(SetUpMachine { assembled, saver, origin: MachineOrigin::Boot { refusal: None } })
    }

    /// Assembles the machine from the template in `file`. If that cannot be, the machine boots.
    fn start_from(&self, file: OwnedFd) -> Result<(AssembledMachine, MachineOrigin), LaunchError> {
        let boot = |refusal| Ok((self.assemble(None)?, MachineOrigin::Boot { refusal }));
        let assembled = match Template::open(file.into()) {
            // KVM has not enough memory slots to plug the rest.
            Ok(template) if template.state.shape.max_memory() < self.resources.memory_size => return boot(None),
            Ok(template) => self.assemble(Some(template)),
            Err(error) => Err(AssemblyError::Machine(error.into())),
        };
        match assembled {
            Ok(assembled) => Ok((assembled, MachineOrigin::Template)),
            Err(error) => boot(Some(crate::chain(&error))),
        }
    }

    fn assemble(&self, template: Option<Template>) -> Result<AssembledMachine, AssemblyError> {
        let node_maker = self.node_maker.try_clone().map_err(AssemblyError::NodeMaker)?;
        let server = Server::new(self.shares.clone(), Limits::of_process(), self.proc_fds.clone(), Some(node_maker));
        assemble(&self.resources, template, &self.event_loop, server, self.ports.clone())
    }
}
