//! COMMIT and RETIRE: a prepared generation becomes the serving one.
//! Called by `lifecycle` when a transaction's other steps have succeeded. Never half done.

use std::path::PathBuf;

use super::admin::AdminSocket;
use super::lifecycle::Master;
use super::pidfile::PidFile;
use super::reload::{Failed, Prepared};
use super::request::Outcome;
use super::{MasterError, listeners};
use crate::config::Bundle;
use crate::handoff::fault::{self, Step};
use crate::handoff::messages::{FromWorker, Slots, ToWorker};
use crate::logging::{EventLog, Severity};
use crate::socket::Publication;
use crate::upstream::Farm;

/// A generation that has been told to serve, with all that is to take effect once it does. Dropping it takes
/// everything back.
pub(super) struct Elected {
    // First, so that paths lead where they led before the new sockets go.
    publication: Publication,
    prepared: Prepared,
    /// The inner options are for what the configuration no longer wants; the outer ones for what stays.
    admin: Option<Option<AdminSocket>>,
    pid_file: Option<Option<(PathBuf, PidFile)>>,
    /// What the worker said beside that it serves.
    said: Vec<FromWorker>,
}

impl Elected {
    /// Waits until the worker serves. Whoever served before accepts until then, and goes on if it never does.
    pub(super) async fn serving(mut self) -> Result<Self, Failed> {
        match self.prepared.worker.serve().await {
            Ok(said) => {
                self.said = said;
                Ok(self)
            }
            Err(error) => Err((Outcome::RolledBack, error)),
        }
    }

    /// What the caller is to be told beside the outcome.
    pub(super) fn warnings(&self) -> Vec<String> {
        self.prepared.warnings.clone()
    }
}

impl Master {
    /// COMMIT up to the order to serve: everything in it that can fail, before anything that shows.
    pub(super) fn elect(&self, prepared: Prepared) -> Result<Elected, MasterError> {
        let (bundle, listeners) = (&prepared.bundle, &prepared.listeners);
        fault::strike(Step::Commit).map_err(|source| MasterError::System { what: "the last step", source })?;
        if self.listeners.is_empty() {
            // Of two daemons that start at once both could bind, one can listen: the other must not have put its
            // admin socket and pid file in place of the winner's.
            listeners::listen(listeners)?;
        }
        let pid_file = self.new_pid_file(bundle)?;
        let admin = self.new_admin(bundle)?;
        listeners::listen(listeners)?;
        let publication = listeners::publish(listeners)?;
        // They may have been rotated since it was started.
        prepared.worker.tell(&ToWorker::TicketKeys(self.blank.tickets.keys().to_vec()));
        prepared.worker.tell(&ToWorker::Serve);
        Ok(Elected { publication, prepared, admin, pid_file, said: Vec::new() })
    }

    /// An election that came to nothing: sockets that go on listening have the backlog and the rights they had.
    pub(super) fn take_back(&self) {
        // They listen already; whatever refuses this changes nothing for a client.
        let _ = listeners::listen(&self.listeners);
    }

    /// The rest of COMMIT, and RETIRE. Returns the generations that are to stop accepting now.
    pub(super) fn commit(&mut self, elected: Elected) -> Result<Vec<u64>, MasterError> {
        let Elected { publication, prepared, admin, pid_file, said } = elected;
        if prepared.worker.is_gone() {
            drop(publication);
            return Err(MasterError::WorkerDied);
        }
        let Prepared { bundle, listeners, worker, maxconn, .. } = prepared;
        worker.listen(said, &self.blank.events);
        // From now on checks are its business: what the old one still finds is about servers that may be others by now.
        self.blank.memory.set_prober(worker.generation);
        self.settle_servers(&bundle, &worker.slots);
        worker.tell(&ToWorker::Check);
        self.tell_elders(&bundle);
        let abandoned = listeners::abandoned(&self.listeners, &listeners);
        let retiring = self.workers.promote(worker, &abandoned, &bundle.reload);
        publication.confirm();
        self.listeners = listeners;
        self.maxconn = maxconn;
        self.respawn.began();
        if let Some(admin) = admin {
            self.change_admin(admin);
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
        self.certificates.turn_to(&self.bundle, &self.blank.events);
        self.warn_of_expiry();
        Ok(retiring)
    }

    /// Puts the new admin socket in its place, which may be that of the old one.
    fn change_admin(&mut self, mut admin: Option<AdminSocket>) {
        let placed = admin.as_mut().map_or(Ok(()), AdminSocket::publish);
        match placed {
            Ok(()) => self.admin = admin,
            Err(error) => self.say(Severity::Error, &format!("the admin socket stays where it was: {error}")),
        }
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

    /// The admin socket, where it has to change; not in its place yet.
    fn new_admin(&self, bundle: &Bundle) -> Result<Option<Option<AdminSocket>>, MasterError> {
        // What is there counts, not what was wanted last: a socket that could not be put in its place is tried again.
        if self.admin.as_ref().map(AdminSocket::rights) == bundle.admin.as_ref() {
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
