//! Certificates, and those that vouch for clients, whose files change: looked for twice a second, sent to the workers
//! once they are whole.
//! The two halves stand alone: neither waits for what is wrong with the other.
//! Run beside `lifecycle`, which it tells. Never exchanges a certificate for one that could not be served.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::iter;
use std::mem;
use std::os::fd::AsFd as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::sync::mpsc;
use tokio::task::AbortHandle;

use super::events::Event;
use super::lifecycle::Master;
use crate::config::{
    Bundle, Certificate, ClientAuth, Expiry, Frontend, TlsServer, read_certificates, read_client_auth,
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
    frontend: String,
}

/// What one half of a frontend's files holds.
#[derive(Clone, PartialEq, Eq)]
pub(super) enum Material {
    Certificates(Vec<Certificate>),
    Clients(ClientAuth),
}

/// What a look found.
pub(super) enum Found {
    /// Something else than before, all of which can be used; the file is for the workers.
    New(Material, File),
    /// Why everything stays as it is.
    Unusable(String),
}

/// One half of a frontend's files as they were.
struct Watched {
    frontend: String,
    /// Where to look; what was found there is below.
    tls: TlsServer,
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
        let watched: Vec<_> = bundle.frontends.iter().flat_map(Watched::halves).collect();
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
                Some(Event::Certificates(Sight { watch, frontend: one.frontend.clone() }, found))
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
    fn read(&self, tls: &TlsServer) -> Result<Self, String> {
        match self {
            Self::Certificates(_) => read_certificates(tls).map(Self::Certificates),
            Self::Clients(auth) => read_client_auth(auth).map(Self::Clients),
        }
    }

    fn marks(&self, tls: &TlsServer) -> Vec<Option<Mark>> {
        match self {
            Self::Certificates(_) => {
                let named = tls.sources.iter().flat_map(|(file, key)| [Some(file), key.as_ref()]).flatten();
                named.map(|path| mark(path)).chain(tls.cert_dir.iter().flat_map(|folder| marks_of(folder))).collect()
            }
            Self::Clients(auth) => [Some(&auth.authorities.path), auth.crl_file.as_ref()]
                .into_iter()
                .flatten()
                .map(|path| mark(path))
                .collect(),
        }
    }

    fn title(&self) -> &'static str {
        match self {
            Self::Certificates(_) => "the certificates",
            Self::Clients(_) => "the authorities and revocation lists for clients",
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
        Material::Certificates(certificates) => serde_json::to_vec(certificates),
        Material::Clients(auth) => serde_json::to_vec(auth),
    };
    let mut file = memory_file("certificates")?;
    file.write_all(&text?)?;
    Ok(file)
}

impl Watched {
    fn halves(frontend: &Frontend) -> Vec<Self> {
        let Some(mut tls) = frontend.tls.as_ref().filter(|tls| tls.watch).cloned() else { return Vec::new() };
        let certificates = Material::Certificates(mem::take(&mut tls.certificates));
        let clients = tls.client_auth.take().map(Material::Clients);
        // Not looked at before: what changed since the configuration was read is found the first time.
        let half = |known| Self {
            frontend: frontend.name.clone(),
            tls: tls.clone(),
            known,
            marks: Vec::new(),
            seen: 0,
            told: None,
        };
        iter::once(certificates).chain(clients).map(half).collect()
    }

    /// What there is to tell of a change. One that cannot be packed is as one that cannot be read: tried again later.
    fn look(&mut self, pack: fn(&Material) -> io::Result<File>) -> Option<Found> {
        if !self.wants_reading(self.known.marks(&self.tls)) {
            return None;
        }
        let read = self.known.read(&self.tls).and_then(|material| {
            let file =
                if material == self.known { None } else { Some(pack(&material).map_err(|error| error.to_string())?) };
            Ok(file.map(|file| (material, file)))
        });
        // Else somebody is still writing: a later look sees the end of it.
        let quiet = self.known.marks(&self.tls) == self.marks;
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
                let line = format!("{} stay as they are: {problem}", self.known.title());
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

/// Which certificates have been warned of today.
#[derive(Default)]
pub(super) struct Warned {
    day: u64,
    certificates: HashSet<Expiry>,
}

impl Warned {
    /// What is to be told now of certificates that end: each once a day.
    fn news(&mut self, expiries: &[Expiry], now: Duration) -> Vec<String> {
        if !self.is_of(now) {
            *self = Self { day: day(now), certificates: HashSet::new() };
        }
        let now = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
        let warnings = expiries.iter().filter_map(|expiry| Some((expiry, expiry.warning(now)?)));
        warnings.filter(|(expiry, _)| self.certificates.insert((*expiry).clone())).map(|(_, line)| line).collect()
    }

    fn is_of(&self, now: Duration) -> bool {
        self.day == day(now)
    }
}

/// Days since 1970.
fn day(now: Duration) -> u64 {
    now.as_secs() / (24 * 3600)
}

fn now() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

impl Master {
    /// A look at the files of a frontend had a result. What is right is served by every worker from now on.
    pub(super) fn exchange(&mut self, sight: &Sight, found: Found) {
        if sight.watch != self.certificates.number {
            return;
        }
        let name = &sight.frontend;
        match found {
            Found::New(material, file) => {
                for change in self.serve(name, material, &file) {
                    self.say(Severity::Notice, &format!("frontend {name}: {change}"));
                }
            }
            Found::Unusable(problem) => self.say(Severity::Error, &format!("frontend {name}: {problem}")),
        }
        self.warn_of_expiry();
    }

    /// Returns what has changed.
    fn serve(&mut self, frontend: &str, found: Material, file: &File) -> Vec<String> {
        let mut bundle = Bundle::clone(&self.bundle);
        let known = bundle.frontends.iter_mut().find(|known| known.name == frontend);
        let Some(tls) = known.and_then(|known| known.tls.as_mut()) else { return Vec::new() };
        let name = frontend.to_owned();
        let (message, changes) = match found {
            Material::Certificates(new) => {
                let old = mem::replace(&mut tls.certificates, new);
                (ToWorker::Certificates(name), vec![difference(&old, &tls.certificates)])
            }
            Material::Clients(new) => {
                let changes = tls.client_auth.as_ref().map(|old| client_changes(old, &new)).unwrap_or_default();
                tls.client_auth = Some(new);
                (ToWorker::Clients(name), changes)
            }
        };
        self.workers.tell_serving(&message, file.as_fd());
        // Whoever replaces a worker that dies has them, too.
        self.bundle = Arc::new(bundle);
        changes
    }

    /// Tells of certificates that end, or have ended, when that has not been told today.
    pub(super) fn warn_of_expiry(&mut self) {
        let expiries = self.bundle.expiries();
        for line in self.warned.news(&expiries, now()) {
            self.say(Severity::Warning, &line);
        }
    }

    /// The same, once a day.
    pub(super) fn warn_daily(&mut self) {
        if !self.warned.is_of(now()) {
            self.warn_of_expiry();
        }
    }
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
        let mut watched = Watched::halves(&loaded.bundle.frontends[0]).pop().unwrap();
        write("new.example");
        let full: fn(&Material) -> io::Result<File> = |_| Err(io::ErrorKind::StorageFull.into());
        let told = (0..AGAIN).filter_map(|_| watched.look(full)).collect::<Vec<_>>();
        assert!(
            matches!(&told[..], [Found::Unusable(line)] if line.starts_with("the certificates stay as they are: "))
        );
        let found = (0..AGAIN).filter_map(|_| watched.look(packed)).collect::<Vec<_>>();
        assert!(matches!(&found[..], [Found::New(Material::Certificates(new), _)] if new[0].names == ["new.example"]));
    }

    #[test]
    fn an_end_that_is_near_is_told_once_a_day() {
        let day = Duration::from_secs(24 * 3600);
        let expiry = |path: &str, days: i64| Expiry {
            kind: Expiry::FRONTEND,
            proxy: String::from("www"),
            path: path.into(),
            not_after: days * 24 * 3600,
        };
        let mut warned = Warned::default();
        let mut all = vec![expiry("near.pem", 105), expiry("far.pem", 200)];
        assert_eq!(warned.news(&all, day * 100), ["frontend www: the certificate of `near.pem` expires in 5 days"]);
        // It is a day less by now, but the same day.
        assert!(warned.news(&all, day * 100 + day / 2).is_empty());
        all.push(expiry("gone.pem", 99));
        let gone = "frontend www: the certificate of `gone.pem` has expired";
        assert_eq!(warned.news(&all, day * 100), [gone]);
        assert!(warned.news(&all, day * 100).is_empty());
        assert!(!warned.is_of(day * 101));
        assert!(warned.news(&all, day * 101).contains(&gone.to_owned()));
    }
}
