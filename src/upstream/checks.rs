//! The checks of one generation: a task per backend that starts probes when they are due and notes what they find.
//! Started by `worker`, in one worker of the daemon and on one thread of it. Never serves a client.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::task::JoinSet;
use tokio::time::Instant;

use super::verdict::{Finding, after, initial, pause};
use super::{Farm, Lines, Way, probe};
use crate::config::{Bundle, Check};
use crate::handoff::messages::Slots;
use crate::stats::{Admin, Counter, Health, Memory};
use crate::tls::ClientSettings;

/// What the checks of a generation need.
#[derive(Clone)]
pub struct Checks {
    /// The configuration.
    pub bundle: Arc<Bundle>,
    /// Places in the shared counters.
    pub slots: Slots,
    /// The shared counters.
    pub memory: Memory,
    /// TLS with servers, per backend.
    pub secured: Arc<[Option<ClientSettings>]>,
    /// The generation; the checks end when another one has taken them over.
    pub generation: u64,
}

impl Checks {
    /// Begins. `say` is told what is to be logged.
    pub fn start(&self, say: impl Fn(Lines) + Clone + Send + 'static) {
        for (place, backend) in self.bundle.backends.iter().enumerate() {
            if backend.servers.iter().any(|server| backend.check_of(server).is_some()) {
                tokio::spawn(self.clone().follow(place, say.clone()));
            }
        }
    }

    fn is_mine(&self) -> bool {
        self.memory.prober() == self.generation
    }

    /// Checks the servers of a backend for as long as this generation is the one that does.
    async fn follow(self, place: usize, say: impl Fn(Lines)) {
        let Some(farm) = Farm::of(&self.bundle, &self.slots, &self.memory, place) else { return };
        let Some(check) = &farm.config().check else { return };
        let secured = self.secured.get(place).and_then(Option::as_ref);
        let ways: Vec<_> = (0..farm.config().servers.len()).map(|server| way(&farm, server, secured)).collect();
        let mut due = first_times(&farm, check);
        let mut running = JoinSet::new();
        loop {
            let next = due.iter().flatten().min().copied();
            tokio::select! {
                Some(ended) = running.join_next() => {
                    if !self.is_mine() {
                        return;
                    }
                    // One that panicked has said so on stderr, and its server is due again by itself.
                    let Ok((server, began, finding)) = ended else { continue };
                    say(note(&farm, (server, check), began, &finding));
                    due[server] = Some(began + pause(health(&farm, server, check), check));
                }
                () = until(next) => {
                    if !self.is_mine() {
                        return;
                    }
                    let now = Instant::now();
                    for server in 0..due.len() {
                        if due[server].is_none_or(|due| due > now) {
                            continue;
                        }
                        if farm.standing(server).orders.admin == Admin::Maint {
                            due[server] = Some(now + check.interval);
                            continue;
                        }
                        due[server] = None;
                        farm.server(server).set(Counter::LastCheck, epoch_millis());
                        if let Some(way) = ways[server].clone() {
                            // In case this check has no end.
                            due[server] = Some(now + check.timeout + check.interval);
                            running.spawn(run(server, way, check.clone()));
                        }
                    }
                }
            }
        }
    }
}

async fn run(server: usize, way: Way, check: Check) -> (usize, Instant, Finding) {
    let began = Instant::now();
    let finding = probe::probe(&way, &check.question, check.timeout).await;
    (server, began, finding)
}

/// The way of a server's checks, to their own port where they have one.
fn way(farm: &Farm<'_>, server: usize, secured: Option<&ClientSettings>) -> Option<Way> {
    let mut way = Way::to(farm.config(), server, secured)?;
    if let Some(port) = farm.config().check.as_ref().and_then(|check| check.port) {
        way.address.set_port(port);
    }
    Some(way)
}

fn note(farm: &Farm<'_>, (server, check): (usize, &Check), began: Instant, finding: &Finding) -> Lines {
    // Whoever is under maintenance is nobody's to judge.
    if farm.standing(server).orders.admin == Admin::Maint {
        return Vec::new();
    }
    let health = after(health(farm, server, check), finding, began.elapsed(), check);
    farm.note(server, health, finding.info.as_deref())
}

fn health(farm: &Farm<'_>, server: usize, check: &Check) -> Health {
    farm.standing(server).health.unwrap_or_else(|| initial(check))
}

/// When each server is due. One that another generation has checked already goes on in its own time, or
/// reloads that come fast would keep everybody from ever being checked; new ones are spread over the interval.
fn first_times(farm: &Farm<'_>, check: &Check) -> Vec<Option<Instant>> {
    let config = farm.config();
    let (now, millis, count) = (Instant::now(), epoch_millis(), config.servers.len().max(1));
    let times = config.servers.iter().enumerate().map(|(server, its)| {
        config.check_of(its)?;
        let last = farm.server(server).state(Counter::LastCheck);
        let wait = match farm.standing(server).health {
            Some(known) if last > 0 => {
                // A clock that was set back must not stop anything.
                let since = Duration::from_millis(millis.saturating_sub(last));
                pause(known, check).saturating_sub(since)
            }
            _ => {
                let (server, count) = (u32::try_from(server).ok()?, u32::try_from(count).ok()?);
                check.interval * server / count
            }
        };
        Some(now + wait)
    });
    times.collect()
}

fn epoch_millis() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

async fn until(time: Option<Instant>) {
    match time {
        Some(time) => tokio::time::sleep_until(time).await,
        None => std::future::pending().await,
    }
}
