//! A backend's servers as those see them who change their standing: orders, verdicts, what is logged of them.
//! Used by the master for the operator's orders and by `checks` for verdicts. Never connects, never serves.

use std::time::{SystemTime, UNIX_EPOCH};

use super::balance::{Schedule, Share};
use super::verdict::{adjusted, initial};
use crate::config::{self, Bundle};
use crate::handoff::messages::Slots;
use crate::logging::Severity;
use crate::stats::{Admin, CheckStatus, Counter, Gauge, Health, Memory, Orders, Slot, Standing};

/// What a change gives to log, in HAProxy's words.
pub type Lines = Vec<(Severity, String)>;

/// One backend and its servers.
pub struct Farm<'a> {
    config: &'a config::Backend,
    slot: Slot,
    servers: Vec<(Slot, u32)>,
    memory: Memory,
}

/// How many servers take requests.
struct Takers {
    active: usize,
    backup: usize,
}

impl<'a> Farm<'a> {
    /// The backend at this place of a bundle; `None` when something lies outside the shared memory.
    #[must_use]
    pub fn of(bundle: &'a Bundle, slots: &Slots, memory: &Memory, backend: usize) -> Option<Self> {
        // Lane 0 serves for reading: standings are common to all lanes.
        let slot = |place: &u32| Some((memory.slot(0, *place)?, *place));
        let servers: Option<Vec<_>> = slots.servers.get(backend)?.iter().map(slot).collect();
        let config = bundle.backends.get(backend)?;
        let servers = servers.filter(|servers| servers.len() == config.servers.len())?;
        Some(Self { config, slot: memory.slot(0, *slots.backends.get(backend)?)?, servers, memory: *memory })
    }

    /// The configuration of this backend.
    #[must_use]
    pub fn config(&self) -> &'a config::Backend {
        self.config
    }

    /// The standing of a server.
    #[must_use]
    pub fn standing(&self, server: usize) -> Standing {
        self.servers[server].0.standing()
    }

    /// The counters of a server.
    #[must_use]
    pub fn server(&self, server: usize) -> Slot {
        self.servers[server].0
    }

    /// Follows the operator. A server that comes out of maintenance is up, and down again with its first
    /// failure, as in HAProxy.
    pub fn order(&self, server: usize, orders: Orders) -> Lines {
        let slot = self.servers[server].0;
        let before = slot.standing();
        if before.orders == orders {
            return Vec::new();
        }
        let leaves_maintenance = before.orders.admin == Admin::Maint && orders.admin != Admin::Maint;
        if let (true, Some(check)) = (leaves_maintenance, self.check_of(server)) {
            let known = before.health.unwrap_or(initial(check));
            slot.note_health(Health { up: true, level: check.rise, ..known });
        }
        let mut lines = self.changing(server, || slot.order(orders));
        lines.splice(0..0, self.told(server, before.orders, orders));
        lines
    }

    /// Follows the checks: the state after one of them. `info` is what it said beside its description.
    pub fn note(&self, server: usize, health: Health, info: Option<&str>) -> Lines {
        let slot = self.servers[server].0;
        let was_up = slot.standing().is_up(true);
        if was_up && !health.status.passed() && health.status != CheckStatus::SocketError {
            slot.add(Counter::ChecksFailed, 1);
        }
        if was_up == health.up {
            slot.note_health(health);
            return Vec::new();
        }
        if !health.up {
            slot.add(Counter::TimesDown, 1);
        }
        let mut lines = self.changing(server, || slot.note_health(health));
        lines.insert(0, self.turned(server, health, info));
        lines
    }

    /// Forgets what belongs to servers that were not there before, or are not the same any more: all of a
    /// new name, the runtime weight where the configured one was changed, the health where the address
    /// was changed or nothing is checked.
    pub fn settle(&self, before: Option<&config::Backend>) {
        for (config, (slot, _)) in self.config.servers.iter().zip(&self.servers) {
            let old = before.and_then(|before| before.servers.iter().find(|old| old.name == config.name));
            let orders = slot.standing().orders;
            match old {
                None => slot.order(Orders::default()),
                Some(old) if old.weight != config.weight => slot.order(Orders { weight: None, ..orders }),
                Some(_) => {}
            }
            let same = old.is_some_and(|old| old.address == config.address);
            match (self.config.check_of(config), slot.standing().health) {
                (Some(check), Some(health)) if same => slot.note_health(adjusted(health, check)),
                _ => slot.forget_health(),
            }
        }
        self.slot.announce();
    }

    /// Makes a change known, and keeps the times of the server and of the whole backend.
    fn changing(&self, server: usize, change: impl FnOnce()) -> Lines {
        let (slot, checked) = (self.servers[server].0, self.check_of(server).is_some());
        let runs = || {
            let standing = slot.standing();
            standing.orders.admin != Admin::Maint && standing.is_up(checked)
        };
        let (ran, served) = (runs(), self.schedule().usable() > 0);
        change();
        self.slot.announce();
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        keep_times(slot, ran, runs(), now);
        let serves = self.schedule().usable() > 0;
        keep_times(self.slot, served, serves, now);
        if served && !serves {
            self.slot.add(Counter::TimesDown, 1);
            return vec![(Severity::Emergency, format!("backend {} has no server available!", self.config.name))];
        }
        Vec::new()
    }

    fn check_of(&self, server: usize) -> Option<&'a config::Check> {
        self.config.check_of(&self.config.servers[server])
    }

    fn schedule(&self) -> Schedule {
        Schedule::new(&self.shares())
    }

    fn shares(&self) -> Vec<Share> {
        let both = self.config.servers.iter().zip(&self.servers);
        both.map(|(config, (slot, _))| Share {
            weight: slot.standing().share(config.weight, self.config.check_of(config).is_some()),
            backup: config.backup,
        })
        .collect()
    }

    fn takers(&self) -> Takers {
        let shares = self.shares();
        let count = |backup| shares.iter().filter(|share| share.weight > 0 && share.backup == backup).count();
        Takers { active: count(false), backup: count(true) }
    }

    fn title(&self, server: usize) -> String {
        let config = &self.config.servers[server];
        let role = if config.backup { "Backup Server" } else { "Server" };
        format!("{role} {}/{}", self.config.name, config.name)
    }

    /// What is left or online after a change.
    fn rest(&self, server: usize, up: bool) -> String {
        let Takers { active, backup } = self.takers();
        let running = if active == 0 && backup > 0 { " Running on backup." } else { "" };
        if up {
            let queued = self.memory.gauge_total(self.servers[server].1, Gauge::Queued);
            return format!(
                "{active} active and {backup} backup servers online.{running} 0 sessions requeued, {queued} total in queue."
            );
        }
        let sessions = self.memory.gauge_total(self.servers[server].1, Gauge::Sessions);
        format!(
            "{active} active and {backup} backup servers left.{running} {sessions} sessions active, 0 requeued, 0 remaining in queue."
        )
    }

    fn turned(&self, server: usize, health: Health, info: Option<&str>) -> (Severity, String) {
        let (severity, word) = if health.up { (Severity::Notice, "UP") } else { (Severity::Alert, "DOWN") };
        let mut line = format!("{} is {word}, reason: {}", self.title(server), health.status.words().1);
        if matches!(health.status, CheckStatus::L7Ok | CheckStatus::L7WrongStatus) {
            line += &format!(", code: {}", health.code);
        }
        if let Some(info) = info {
            line += &format!(", info: \"{info}\"");
        }
        (severity, format!("{line}, check duration: {}ms. {}", health.millis, self.rest(server, health.up)))
    }

    fn told(&self, server: usize, before: Orders, now: Orders) -> Lines {
        let title = self.title(server);
        let up = self.standing(server).is_up(self.check_of(server).is_some());
        let word = if up { "UP" } else { "DOWN" };
        let mut lines = Vec::new();
        if before.admin != now.admin {
            let (what, up) = match (before.admin, now.admin) {
                (_, Admin::Maint) => (String::from("is going DOWN for maintenance"), false),
                (Admin::Maint, Admin::Drain) => (format!("is {word}/DRAIN (leaving forced maintenance)"), false),
                (Admin::Maint, _) => (format!("is {word}/READY (leaving forced maintenance)"), up),
                (_, Admin::Drain) => (String::from("enters drain state"), false),
                (_, Admin::Ready) => (format!("is {word} (leaving forced drain)"), up),
            };
            lines.push((Severity::Notice, format!("{title} {what}. {}", self.rest(server, up))));
        }
        if before.weight != now.weight {
            let configured = self.config.servers[server].weight;
            let (old, new) = (before.weight.unwrap_or(configured), now.weight.unwrap_or(configured));
            lines.push((Severity::Notice, format!("{title} has weight {new} now, {old} before.")));
        }
        lines
    }
}

fn keep_times(slot: Slot, before: bool, now: bool, second: u64) {
    if before == now {
        return;
    }
    if now {
        slot.add(Counter::Downtime, second.saturating_sub(slot.state(Counter::LastChange)));
    }
    slot.set(Counter::LastChange, second);
}
