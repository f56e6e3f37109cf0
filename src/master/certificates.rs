//! Certificates, and those that vouch for clients and servers, whose files change: looked for twice a second, sent to the
//! workers once they are whole.
//! Each part of a frontend's or backend's files stands alone: none waits for what is wrong with another.
//! Run beside `lifecycle`, which it tells. Never exchanges a certificate for one that could not be served.

use std::fmt;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::iter;
use std::mem;
use std::os::fd::AsFd as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::AbortHandle;

use super::events::Event;
use super::lifecycle::Master;
use crate::config::{
    Backend, Bundle, Certificate, ClientAuth, Frontend, ServerFiles, TlsServer, read_certificates, read_client_auth,
};
use crate::handoff::memory_file;
use crate::handoff::messages::ToWorker;
use crate::logging::Severity;

/// How often files are looked at: what is new is served within a second.
const EVERY: Duration = Duration::from_millis(500);
/// After how many looks files that could not be used are read again though they look the same: a disk may have failed
/// for a while.
const AGAIN: u32 = 20;

/// What tells one state of a file from another: place, size and time of the last change, that of rights included.
type Mark = (u64, u64, u64, i64, i64);

/// Whose files were looked at, and by which watch: one that has been replaced is not listened to any more.
pub(super) struct Sight {
    watch: u64,
    owner: Owner,
}

/// Whose files they are, by name.
#[derive(Clone)]
enum Owner {
    Frontend(String),
    Backend(String),
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Frontend(name) => write!(f, "frontend {name}"),
            Self::Backend(name) => write!(f, "backend {name}"),
        }
    }
}

/// What one part of the files holds, and where it is read.
#[derive(Clone, PartialEq, Eq)]
pub(super) enum Material {
    /// Of these settings the certificates.
    Certificates(Box<TlsServer>),
    Clients(ClientAuth),
    Servers(ServerFiles),
}

/// What a look found.
pub(super) enum Found {
    /// Something else than before, all of which can be used; the file is for the workers.
    New(Material, File),
    /// Why everything stays as it is.
    Unusable(String),
}

/// One part of the files as they were.
struct Watched {
    owner: Owner,
    known: Material,
    marks: Vec<Option<Mark>>,
    /// How often the files have been seen like this.
    seen: u32,
    /// What is wrong with them, once it has been told.
    told: Option<String>,
}

/// Looks after the certificates of one configuration; ends with it.
#[derive(Default)]
pub(super) struct Watch {
    number: u64,
    task: Option<AbortHandle>,
}

impl Watch {
    /// Looks after another configuration from now on, as far as it wants that.
    pub(super) fn turn_to(&mut self, bundle: &Bundle, events: &mpsc::UnboundedSender<Event>) {
        let number = self.number + 1;
        let watched = Watched::all(bundle);
        let task = (!watched.is_empty()).then(|| tokio::spawn(look(number, watched, events.clone())).abort_handle());
        *self = Self { number, task };
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        if let Some(task) = &self.task {
            task.abort();
        }
    }
}

async fn look(watch: u64, mut watched: Vec<Watched>, events: mpsc::UnboundedSender<Event>) {
    loop {
        // A disk may be slow; the event loop must not wait for it.
        let looked = tokio::task::spawn_blocking(move || {
            let look = |one: &mut Watched| {
                let found = one.look(packed)?;
                Some(Event::Certificates(Sight { watch, owner: one.owner.clone() }, found))
            };
            let news: Vec<_> = watched.iter_mut().filter_map(look).collect();
            (watched, news)
        });
        let Ok((back, news)) = looked.await else { return };
        watched = back;
        for event in news {
            if events.send(event).is_err() {
                return;
            }
        }
        tokio::time::sleep(EVERY).await;
    }
}

impl Material {
    /// The same as the files hold it now.
    fn read(&self) -> Result<Self, String> {
        match self {
            Self::Certificates(tls) => {
                let certificates = read_certificates(tls)?;
                Ok(Self::Certificates(Box::new(TlsServer { certificates, ..TlsServer::clone(tls) })))
            }
            Self::Clients(auth) => read_client_auth(auth).map(Self::Clients),
            Self::Servers(files) => files.read().map(Self::Servers),
        }
    }

    fn marks(&self) -> Vec<Option<Mark>> {
        match self {
            Self::Certificates(tls) => {
                let named = tls.sources.iter().flat_map(|(file, key)| [Some(file), key.as_ref()]).flatten();
                named.map(|path| mark(path)).chain(tls.cert_dir.iter().flat_map(|folder| marks_of(folder))).collect()
            }
            Self::Clients(auth) => [Some(&auth.authorities.path), auth.crl_file.as_ref()]
                .into_iter()
                .flatten()
                .map(|path| mark(path))
                .collect(),
            Self::Servers(files) => files.paths().into_iter().map(mark).collect(),
        }
    }

    /// What the log says where files cannot be used.
    fn kept(&self) -> &'static str {
        match self {
            Self::Certificates(_) => "the certificates stay as they are",
            Self::Clients(_) => "the authorities and revocation lists for clients stay as they are",
            Self::Servers(files) => files.kept(),
        }
    }
}

/// A folder and what is in it.
fn marks_of(folder: &Path) -> Vec<Option<Mark>> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut paths: Vec<_> = entries.map(|entry| entry.path()).collect();
    paths.sort_unstable();
    iter::once(mark(folder)).chain(paths.iter().map(|path| mark(path))).collect()
}

/// The file that workers read it from.
fn packed(material: &Material) -> io::Result<File> {
    let text = match material {
        Material::Certificates(tls) => serde_json::to_vec(&tls.certificates),
        Material::Clients(auth) => serde_json::to_vec(auth),
        Material::Servers(files) => serde_json::to_vec(files),
    };
    let mut file = memory_file("certificates")?;
    file.write_all(&text?)?;
    Ok(file)
}

impl Watched {
    /// What of a configuration is to be watched.
    fn all(bundle: &Bundle) -> Vec<Self> {
        let of_backend = |backend| Self::of_backend(backend, bundle);
        bundle.frontends.iter().flat_map(Self::of_frontend).chain(bundle.backends.iter().flat_map(of_backend)).collect()
    }

    fn of_frontend(frontend: &Frontend) -> Vec<Self> {
        let Some(mut tls) = frontend.tls.clone().filter(|tls| tls.watch) else { return Vec::new() };
        let clients = tls.client_auth.take().map(Material::Clients);
        let parts = iter::once(Material::Certificates(Box::new(tls))).chain(clients);
        parts.map(|known| Self::new(Owner::Frontend(frontend.name.clone()), known)).collect()
    }

    fn of_backend(backend: &Backend, bundle: &Bundle) -> Vec<Self> {
        if !backend.tls.as_ref().is_some_and(|tls| tls.watch) {
            return Vec::new();
        }
        let parts = ServerFiles::of(backend, &bundle.authorities).into_iter().map(Material::Servers);
        parts.map(|known| Self::new(Owner::Backend(backend.name.clone()), known)).collect()
    }

    /// Not looked at before: what changed since the configuration was read is found the first time.
    fn new(owner: Owner, known: Material) -> Self {
        Self { owner, known, marks: Vec::new(), seen: 0, told: None }
    }

    /// What there is to tell of a change. One that cannot be packed is as one that cannot be read: tried again later.
    fn look(&mut self, pack: fn(&Material) -> io::Result<File>) -> Option<Found> {
        if !self.wants_reading(self.known.marks()) {
            return None;
        }
        let read = self.known.read().and_then(|material| {
            let file =
                if material == self.known { None } else { Some(pack(&material).map_err(|error| error.to_string())?) };
            Ok(file.map(|file| (material, file)))
        });
        // Else somebody is still writing: a later look sees the end of it.
        let quiet = self.known.marks() == self.marks;
        if quiet { self.judge(read) } else { None }
    }

    /// Whether files with these marks have to be read. Those that are new are, and once more at the next look: what
    /// was written within the same tick of the clock leaves no other mark.
    fn wants_reading(&mut self, marks: Vec<Option<Mark>>) -> bool {
        if marks != self.marks {
            (self.marks, self.seen) = (marks, 0);
        }
        self.seen = self.seen.saturating_add(1);
        self.seen <= 2 || (self.told.is_some() && self.seen.is_multiple_of(AGAIN))
    }

    fn judge(&mut self, read: Result<Option<(Material, File)>, String>) -> Option<Found> {
        match read {
            Ok(news) => {
                self.told = None;
                let (material, file) = news?;
                self.known.clone_from(&material);
                Some(Found::New(material, file))
            }
            // Half a file, or a certificate before its key, is none of anybody's business unless it stays.
            Err(_) if self.seen < 2 => None,
            Err(problem) if self.told.as_ref() == Some(&problem) => None,
            Err(problem) => {
                let line = format!("{}: {problem}", self.known.kept());
                self.told = Some(problem);
                Some(Found::Unusable(line))
            }
        }
    }
}

/// Follows links: certbot and Kubernetes exchange those, not the files.
fn mark(path: &Path) -> Option<Mark> {
    let about = fs::metadata(path).ok()?;
    Some((about.dev(), about.ino(), about.size(), about.ctime(), about.ctime_nsec()))
}

impl Master {
    /// A look at files had a result. What is right is served by every worker from now on.
    pub(super) fn exchange(&mut self, sight: &Sight, found: Found) {
        if sight.watch != self.certificates.number {
            return;
        }
        let owner = &sight.owner;
        match found {
            Found::New(material, file) => {
                for change in self.serve(owner, material, &file) {
                    self.say(Severity::Notice, &format!("{owner}: {change}"));
                }
            }
            Found::Unusable(problem) => self.say(Severity::Error, &format!("{owner}: {problem}")),
        }
        self.warn_of_expiry();
    }

    /// Returns what has changed.
    fn serve(&mut self, owner: &Owner, found: Material, file: &File) -> Vec<String> {
        let mut bundle = Bundle::clone(&self.bundle);
        let Some((order, changes)) = put(&mut bundle, owner, found) else { return Vec::new() };
        self.tell(&order, file);
        // Whoever replaces a worker that dies has them, too.
        self.bundle = Arc::new(bundle);
        changes
    }

    fn tell(&self, order: &ToWorker, file: &File) {
        for refused in self.workers.tell_change(order, file.as_fd()) {
            self.say(Severity::Error, &refused);
        }
    }

    /// A reload has read files for servers before a look at them did: workers that drain are told all the same.
    pub(super) fn tell_elders(&self, fresh: &Bundle) {
        for Watched { owner, known, .. } in Watched::all(fresh) {
            let (Owner::Backend(name), Material::Servers(files)) = (&owner, &known) else { continue };
            let mut before = self.bundle.backends.iter().filter(|backend| backend.name == *name);
            if before.any(|backend| ServerFiles::of(backend, &self.bundle.authorities).contains(files)) {
                continue;
            }
            match packed(&known) {
                Ok(file) => self.tell(&ToWorker::Servers(name.clone()), &file),
                Err(error) => self.say(Severity::Error, &format!("{owner}: older workers are not told: {error}")),
            }
        }
    }
}

/// Puts something in its place. Returns the order to follow suit, and what has changed.
fn put(bundle: &mut Bundle, owner: &Owner, found: Material) -> Option<(ToWorker, Vec<String>)> {
    match (owner, found) {
        (Owner::Frontend(name), Material::Certificates(new)) => {
            let tls = tls_of(bundle, name)?;
            let old = mem::replace(&mut tls.certificates, new.certificates);
            Some((ToWorker::Certificates(name.clone()), vec![difference(&old, &tls.certificates)]))
        }
        (Owner::Frontend(name), Material::Clients(new)) => {
            let tls = tls_of(bundle, name)?;
            let changes = tls.client_auth.as_ref().map(|old| client_changes(old, &new)).unwrap_or_default();
            tls.client_auth = Some(new);
            Some((ToWorker::Clients(name.clone()), changes))
        }
        (Owner::Backend(name), Material::Servers(new)) => {
            let change = new.change().to_owned();
            bundle.exchange(name, new)?;
            Some((ToWorker::Servers(name.clone()), vec![change]))
        }
        _ => None,
    }
}

fn tls_of<'a>(bundle: &'a mut Bundle, frontend: &str) -> Option<&'a mut TlsServer> {
    bundle.frontends.iter_mut().find(|known| known.name == frontend)?.tls.as_mut()
}

/// What the log says of an exchange.
fn difference(old: &[Certificate], new: &[Certificate]) -> String {
    let fresh: Vec<_> = new.iter().filter(|one| !old.contains(one)).collect();
    let gone: Vec<_> = old.iter().filter(|one| !new.iter().any(|other| other.path == one.path)).collect();
    match (fresh.is_empty(), gone.is_empty()) {
        (true, _) => format!("no more certificates for {}", names(&gone)),
        (false, true) => format!("new certificates for {}", names(&fresh)),
        (false, false) => format!("new certificates for {}; no more for {}", names(&fresh), names(&gone)),
    }
}

fn client_changes(old: &ClientAuth, new: &ClientAuth) -> Vec<String> {
    let authorities = (new.authorities != old.authorities).then(|| String::from("other authorities for clients"));
    let lists = (new.crls != old.crls).then(|| String::from("other revocation lists for clients"));
    authorities.into_iter().chain(lists).collect()
}

/// The first few names of certificates.
fn names(certificates: &[&Certificate]) -> String {
    const SHOWN: usize = 8;
    let all: Vec<_> = certificates.iter().flat_map(|one| &one.names).map(String::as_str).collect();
    let shown = all[..all.len().min(SHOWN)].join(", ");
    if all.len() > SHOWN { format!("{shown} and {} more", all.len() - SHOWN) } else { shown }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_exchange_is_told_by_what_changed() {
        let certificate = |path: &str, names: &[&str], key: u8| Certificate {
            path: path.into(),
            chain: Vec::new(),
            key: vec![key],
            key_format: crate::config::KeyFormat::Pkcs8,
            names: names.iter().map(ToString::to_string).collect(),
            not_after: 0,
        };
        let (a, b) = (certificate("a.pem", &["a.example", "*.a.example"], 1), certificate("b.pem", &["b.example"], 2));
        let newer = certificate("a.pem", &["a.example"], 3);
        let many = certificate("c.pem", &["1", "2", "3", "4", "5", "6", "7", "8", "9"], 4);
        let both = [a.clone(), b.clone()];
        for (old, new, expected) in [
            (&both[..1], &both[..], "new certificates for b.example"),
            (&both[..], &both[1..], "no more certificates for a.example, *.a.example"),
            (&both[..1], &[newer.clone()][..], "new certificates for a.example"),
            (&both[..], &[newer][..], "new certificates for a.example; no more for b.example"),
            (&both[..0], &[many][..], "new certificates for 1, 2, 3, 4, 5, 6, 7, 8 and 1 more"),
        ] {
            assert_eq!(difference(old, new), expected);
        }
    }

    #[test]
    fn what_could_not_be_sent_is_told_once_and_tried_again() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str| {
            let made = rcgen::generate_simple_self_signed([name.to_owned()]).unwrap();
            fs::write(folder.path().join("a.pem"), made.cert.pem() + &made.signing_key.serialize_pem()).unwrap();
        };
        write("old.example");
        let text = "config-version = 1\n[frontend.web]\nbind = \"127.0.0.1:1\"\nbackend = \"pool\"\n\
            tls = { certificates = [\"a.pem\"], watch = true }\n[backend.pool]\n\
            server = [{ name = \"one\", address = \"127.0.0.1:2\" }]\n";
        let loaded = crate::config::load_text(&folder.path().join("proxy.toml"), text, &|_| Ok(())).unwrap();
        let mut watched = Watched::all(&loaded.bundle).pop().unwrap();
        write("new.example");
        let full: fn(&Material) -> io::Result<File> = |_| Err(io::ErrorKind::StorageFull.into());
        let told = (0..AGAIN).filter_map(|_| watched.look(full)).collect::<Vec<_>>();
        assert!(
            matches!(&told[..], [Found::Unusable(line)] if line.starts_with("the certificates stay as they are: "))
        );
        let found = (0..AGAIN).filter_map(|_| watched.look(packed)).collect::<Vec<_>>();
        assert!(
            matches!(&found[..], [Found::New(Material::Certificates(new), _)] if new.certificates[0].names == ["new.example"])
        );
    }
}
