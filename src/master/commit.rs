//! COMMIT and RETIRE: a prepared generation becomes the serving one.
//! Called by `lifecycle` when a transaction's other steps have succeeded. Never half done.

use std::path::PathBuf;

use super::admin::AdminSocket;
use super::lifecycle::Master;
use super::pidfile::PidFile;
use super::reload::Prepared;
use super::{MasterError, listeners};
use crate::config::Bundle;
use crate::handoff::fault::{self, Step};
use crate::handoff::messages::{Slots, ToWorker};
use crate::logging::EventLog;
use crate::upstream::Farm;

impl Master {
    /// COMMIT and RETIRE. Everything that can fail comes before the first step that shows.
    /// Returns the generations that are to stop accepting once the new one has begun to.
    pub(super) fn commit(&mut self, prepared: Prepared) -> Result<Vec<u64>, MasterError> {
        let Prepared { bundle, listeners, worker, maxconn, .. } = prepared;
        if worker.is_gone() {
            return Err(MasterError::WorkerDied);
        }
        fault::strike(Step::Commit).map_err(|source| MasterError::System { what: "the last step", source })?;
        if self.listeners.is_empty() {
            // Of two daemons that start at once both could bind, one can listen: the other must not have put its
            // admin socket and pid file in place of the winner's.
            listeners::listen(&listeners)?;
        }
        let pid_file = self.new_pid_file(&bundle)?;
        // May take the very path of the old one: nothing that fails often may come after it.
        let admin = self.new_admin(&bundle)?;
        listeners::listen(&listeners)?;
        let publication = listeners::publish(&listeners)?;
        // They may have been rotated since it was started.
        worker.tell(&ToWorker::TicketKeys(self.blank.tickets.keys().to_vec()));
        self.settle_servers(&bundle, &worker.slots);
        let abandoned = listeners::abandoned(&self.listeners, &listeners);
        let retiring = self.workers.promote(worker, &abandoned, bundle.reload.hard_stop_after);
        publication.confirm();
        self.listeners = listeners;
        self.maxconn = maxconn;
        self.respawn.began();
        if let Some(admin) = admin {
            self.admin = admin;
        }
        if let Some(pid_file) = pid_file {
            self.pid_file = pid_file;
        }
        if self.bundle.logs != bundle.logs {
            self.log = EventLog::open(&bundle.logs);
        }
        self.blank.memory.set_config(&bundle.sha256);
        self.blank.memory.set_lives(self.workers.lives());
        self.bundle = bundle;
        Ok(retiring)
    }

    /// Orders and health of servers that are not what they were are forgotten.
    fn settle_servers(&self, bundle: &Bundle, slots: &Slots) {
        for (place, backend) in bundle.backends.iter().enumerate() {
            let before = self.bundle.backends.iter().find(|old| old.name == backend.name);
            if let Some(farm) = Farm::of(bundle, slots, &self.blank.memory, place) {
                farm.settle(before);
            }
        }
    }

    /// The admin socket, where it has to change.
    fn new_admin(&self, bundle: &Bundle) -> Result<Option<Option<AdminSocket>>, MasterError> {
        if self.admin.is_some() == bundle.admin.is_some() && self.bundle.admin == bundle.admin {
            return Ok(None);
        }
        let Some(admin) = &bundle.admin else { return Ok(Some(None)) };
        let opened = AdminSocket::open(admin, self.blank.events.clone());
        opened
            .map(|socket| Some(Some(socket)))
            .map_err(|source| MasterError::File { path: admin.socket.clone(), source })
    }

    /// The pid file, where it has to change; the command line wins over the configuration.
    fn new_pid_file(&self, bundle: &Bundle) -> Result<Option<Option<(PathBuf, PidFile)>>, MasterError> {
        let wanted = self.options.pid_file.as_ref().or(bundle.global.pid_file.as_ref());
        if wanted == self.pid_file.as_ref().map(|(path, _)| path) {
            return Ok(None);
        }
        let Some(path) = wanted else { return Ok(Some(None)) };
        let written = PidFile::write(path).map_err(|source| MasterError::File { path: path.clone(), source })?;
        Ok(Some(Some((path.clone(), written))))
    }
}
