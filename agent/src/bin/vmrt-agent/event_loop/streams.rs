//! The streams of processes, and connections to sockets of the host.

use super::Agent;
use super::lookup::find_listener;
use crate::error::Error;
use crate::streams::pump::Pump;

impl Agent {
    /// Adds an output stream of a process. Returns its id.
    pub(super) fn add_output(&mut self, pump: Pump, pid: i32) -> Result<u32, Error> {
        let id = self.streams.add(&self.poll, pump, Some(pid))?;
        if let Some(process) = self.processes.get_mut(&pid) {
            process.outputs.push(id);
        }
        Ok(id)
    }

    /// Moves bytes of a stream.
    pub(super) fn advance_stream(&mut self, id: u32) {
        if self.streams.advance(id, &mut self.buffer) {
            self.remove_stream(id);
        }
    }

    /// Ends a stream after an error at one of its sides. Bytes that the other side still holds are moved as far as
    /// possible.
    pub(super) fn end_stream(&mut self, id: u32) {
        self.advance_stream(id);
        self.remove_stream(id);
    }

    fn remove_stream(&mut self, id: u32) {
        let Some(stream) = self.streams.remove(id) else { return };
        // The reader has to see the end of file, even if the connection stays open for the other direction.
        let _ = rustix::net::shutdown(stream.pump.to(), rustix::net::Shutdown::Write);
        let Some(process) = stream.process.and_then(|pid| self.processes.get_mut(&pid)) else { return };
        let is_output = process.outputs.contains(&id);
        process.outputs.retain(|output| *output != id);
        // The end of the input leaves a terminal open. The end of the output hangs it up.
        if let Some(opposite) = stream.opposite.filter(|_| is_output) {
            self.streams.remove(opposite);
        }
    }

    /// Accepts the connections that wait at a listener.
    pub(super) fn accept(&mut self, id: u32) {
        if let Some(listener) = find_listener(self.containers.values(), id) {
            listener.accept_pending(&self.host, &self.poll, &mut self.streams);
        }
    }
}
