//! The thread that saves a machine as a template.

use std::fs::File;
use std::io;
use std::sync::mpsc::{Receiver, Sender, channel};

use crate::jail::seccomp::{self, ThreadClass};
use crate::machine::RunningMachine;
use crate::machine::assembly::Devices;
use crate::machine::exit::MachineExit;
use crate::machine::template::write_state;

/// Stack size of the thread in bytes.
const STACK: usize = 256 << 10;

/// Saves a machine, once it has the machine and its guest is ready. A clone refers to the same thread.
#[derive(Clone, Debug)]
pub struct TemplateSaver {
    machine: Sender<RunningMachine>,
    guest_is_ready: Sender<()>,
}

impl TemplateSaver {
    /// Starts the thread. It saves the machine with these `devices`, whose memory is in `file`, and reports the machine's end. It is not
    /// the thread of the event loop, which has to run while devices are stopped.
    ///
    /// # Errors
    /// The thread cannot be started.
    pub fn start(devices: Devices, file: File) -> io::Result<Self> {
        let (machine, machines) = channel::<RunningMachine>();
        let (guest_is_ready, ready) = channel();
        let thread = std::thread::Builder::new().name("template".to_owned()).stack_size(STACK);
        thread.spawn(move || wait_and_save(&machines, &ready, &devices, &file))?;
        Ok(Self { machine, guest_is_ready })
    }

    /// Gives the thread the machine.
    pub fn give(&self, machine: RunningMachine) {
        // An error means that the thread has ended, which it has reported.
        let _ = self.machine.send(machine);
    }

    /// The guest is in the state that is to be saved.
    pub fn save(&self) {
        let _ = self.guest_is_ready.send(());
    }
}

fn wait_and_save(machines: &Receiver<RunningMachine>, ready: &Receiver<()>, devices: &Devices, file: &File) {
    let Ok(machine) = machines.recv() else { return };
    let exit = machine.exit_sender();
    let confined = seccomp::confine(ThreadClass::TemplateSaver);
    // Without a signal, the sandbox has ended before.
    let Ok(()) = ready.recv() else { return };
    let saved = confined.map_err(Into::into).and_then(|()| save(machine, devices, file));
    exit.report(saved.map_or_else(MachineExit::NotSaved, |()| MachineExit::Saved));
}

fn save(
    machine: RunningMachine,
    devices: &Devices,
    file: &File,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let state = devices.stop(machine)?;
    Ok(write_state(file, &state)?)
}
