//! The operator's orders for servers: what a command says, and carrying it out in the shared memory.
//! Called by `admin` for parsing and by `lifecycle` for the rest. Never touches the configuration file.

use std::time::SystemTime;

use serde::Serialize;

use super::lifecycle::Master;
use super::request::{Answer, Outcome};
use crate::config::{Bundle, nearest};
use crate::stats::{Admin, Kind, Orders, Row, Snapshot};
use crate::upstream::Farm;

/// What a caller wants of servers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum ServerRequest {
    /// See how they are.
    List,
    /// Change one.
    Set(Order),
}

/// A change of one server; what is absent stays.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Order {
    backend: String,
    server: String,
    admin: Option<Admin>,
    weight: Option<Weight>,
}

/// A new weight.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Weight {
    Absolute(u16),
    /// Of the configured one.
    Percent(u16),
}

/// Reads a command about servers, ours or HAProxy's. `None` when it is about something else, a message when it is
/// not understood.
pub(super) fn parse(line: &str) -> Option<Result<ServerRequest, String>> {
    let words: Vec<_> = line.split_whitespace().collect();
    Some(match words[..] {
        ["server", "list"] => Ok(ServerRequest::List),
        ["server", "set", name, ref what @ ..] | ["set", "server", name, ref what @ ..] => order(name, what),
        ["set", "weight", name, weight] => order(name, &["weight", weight]),
        ["enable", "server", name] => order(name, &["state", "ready"]),
        ["disable", "server", name] => order(name, &["state", "maint"]),
        ["server" | "enable" | "disable", ..] | ["set", "server" | "weight", ..] => {
            Err(String::from("write: server list, or server set BACKEND/SERVER state ready|drain|maint weight N"))
        }
        _ => return None,
    })
}

fn order(name: &str, what: &[&str]) -> Result<ServerRequest, String> {
    let Some((backend, server)) = name.split_once('/') else {
        return Err(format!("`{name}` names no server: write BACKEND/SERVER"));
    };
    let mut order = Order { backend: backend.to_owned(), server: server.to_owned(), admin: None, weight: None };
    for pair in what.chunks(2) {
        match pair {
            ["state", state] => order.admin = Some(admin(state)?),
            ["weight", weight] => order.weight = Some(self::weight(weight)?),
            _ => return Err(format!("`{}` is not understood: write state or weight, and a value", pair.join(" "))),
        }
    }
    if order.admin.is_none() && order.weight.is_none() {
        return Err(format!("nothing to change of `{name}`: write a state or a weight"));
    }
    Ok(ServerRequest::Set(order))
}

fn admin(word: &str) -> Result<Admin, String> {
    let known = [Admin::Ready, Admin::Drain, Admin::Maint];
    known.into_iter().find(|admin| admin.word() == word).ok_or_else(|| {
        let near = nearest(word, known.map(Admin::word));
        let meant = near.map(|near| format!(", did you mean `{near}`?")).unwrap_or_default();
        format!("a server cannot be `{word}`: write ready, drain or maint{meant}")
    })
}

fn weight(text: &str) -> Result<Weight, String> {
    let weight = match text.strip_suffix('%') {
        Some(percent) => percent.parse().ok().filter(|percent| *percent <= 100).map(Weight::Percent),
        None => text.parse().ok().filter(|weight| *weight <= 256).map(Weight::Absolute),
    };
    weight.ok_or_else(|| format!("`{text}` is no weight: write 0 to 256, or 0% to 100% of the configured one"))
}

impl Weight {
    /// The order for a server of this configured weight. All of it is no order at all: a new configuration counts.
    fn of(self, configured: u16) -> Option<u16> {
        match self {
            Self::Absolute(weight) => Some(weight),
            Self::Percent(100) => None,
            // At least 1, where not 0 was asked for, as in HAProxy.
            Self::Percent(percent) => {
                let share = u32::from(configured) * u32::from(percent);
                Some(u16::try_from(share.div_ceil(100)).unwrap_or(configured))
            }
        }
    }
}

/// Places of a backend and a server by their names, or who may have been meant.
fn find(bundle: &Bundle, order: &Order) -> Result<(usize, usize), String> {
    let names = || bundle.backends.iter().map(|backend| backend.name.as_str());
    let Some(backend) = bundle.backends.iter().position(|backend| backend.name == order.backend) else {
        return Err(format!("there is no backend `{}`{}", order.backend, meant(&order.backend, names())));
    };
    let servers = &bundle.backends[backend].servers;
    match servers.iter().position(|server| server.name == order.server) {
        Some(server) => Ok((backend, server)),
        None => {
            let names = servers.iter().map(|server| server.name.as_str());
            let meant = meant(&order.server, names);
            Err(format!("backend `{}` has no server `{}`{meant}", order.backend, order.server))
        }
    }
}

fn meant<'a>(word: &str, known: impl Iterator<Item = &'a str> + Clone) -> String {
    match nearest(word, known.clone()) {
        Some(near) => format!(": did you mean `{near}`?"),
        None => format!("; known: {}", known.take(20).collect::<Vec<_>>().join(", ")),
    }
}

/// One server as `server list` shows it.
#[derive(Serialize)]
struct Listed<'a> {
    backend: &'a str,
    server: &'a str,
    address: Option<&'a str>,
    /// As on the statistics page.
    status: String,
    /// What was ordered: ready, drain or maint.
    state: &'static str,
    /// What counts now, 0 for a server that takes nothing.
    weight: u64,
    user_weight: u64,
    sessions: u64,
    seconds_since_change: u64,
}

impl Master {
    /// Shows or changes servers.
    pub(super) fn serve_servers(&mut self, request: &ServerRequest) -> Answer {
        match request {
            ServerRequest::List => self.list_servers(),
            ServerRequest::Set(order) => match self.order(order) {
                Ok(answer) => answer,
                Err(problem) => Answer::new(Outcome::Rejected, problem),
            },
        }
    }

    fn list_servers(&self) -> Answer {
        let mut answer = Answer::new(Outcome::Applied, "");
        let snapshot = match self.slots() {
            Ok(slots) => Snapshot::take(&self.bundle, &slots, &self.blank.memory, SystemTime::now()),
            Err(error) => return Answer::new(Outcome::Rejected, error.chain()),
        };
        let servers: Vec<_> = snapshot.rows.iter().filter(|row| row.kind == Kind::Server).map(Listed::of).collect();
        answer.facts = serde_json::to_value(&servers).unwrap_or_default();
        answer
    }

    /// Gives an order. It is in force when this returns: who chooses a server from now on sees it.
    fn order(&mut self, order: &Order) -> Result<Answer, String> {
        let (backend, server) = find(&self.bundle, order)?;
        let slots = self.slots().map_err(|error| error.chain())?;
        let farm = Farm::of(&self.bundle, &slots, &self.blank.memory, backend);
        let farm = farm.ok_or("the shared counters have no place for it")?;
        let before = farm.standing(server).orders;
        let configured = farm.config().servers[server].weight;
        let orders = Orders {
            admin: order.admin.unwrap_or(before.admin),
            weight: order.weight.map_or(before.weight, |weight| weight.of(configured)),
        };
        let lines = farm.order(server, orders);
        let said = if lines.is_empty() { "has been like that" } else { "is" };
        let weight = orders.weight.unwrap_or(configured);
        let message = format!("{}/{} {said}: {}, weight {weight}", order.backend, order.server, orders.admin.word());
        for (severity, line) in lines {
            self.say(severity, &line);
        }
        Ok(Answer::new(Outcome::Applied, message))
    }
}

impl<'a> Listed<'a> {
    fn of(row: &'a Row) -> Self {
        Self {
            backend: &row.proxy,
            server: &row.service,
            address: row.address.as_deref(),
            status: row.status().into_owned(),
            state: row.standing.orders.admin.word(),
            weight: row.weight,
            user_weight: row.user_weight,
            sessions: row.sessions,
            seconds_since_change: row.last_change(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_words_and_haproxys_mean_the_same() {
        let order = |admin, weight| {
            let (backend, server) = (String::from("b"), String::from("s"));
            Some(Ok(ServerRequest::Set(Order { backend, server, admin, weight })))
        };
        let five = Some(Weight::Absolute(5));
        for (line, expected) in [
            ("server list", Some(Ok(ServerRequest::List))),
            ("server set b/s state drain", order(Some(Admin::Drain), None)),
            ("server set b/s state ready weight 5", order(Some(Admin::Ready), five)),
            ("set server b/s state maint", order(Some(Admin::Maint), None)),
            ("set server b/s weight 5", order(None, five)),
            ("set weight b/s 50%", order(None, Some(Weight::Percent(50)))),
            ("enable server b/s", order(Some(Admin::Ready), None)),
            ("disable server b/s", order(Some(Admin::Maint), None)),
            ("status", None),
            ("set maxconn global 5", None),
        ] {
            assert_eq!(parse(line), expected, "{line}");
        }
    }

    #[test]
    fn what_is_not_understood_is_told_what_would_be() {
        for (line, expected) in [
            ("server set bs state drain", "write BACKEND/SERVER"),
            ("server set b/s state drian", "did you mean `drain`?"),
            ("server set b/s state", "`state` is not understood"),
            ("server set b/s", "nothing to change"),
            ("server set b/s weight 257", "0 to 256"),
            ("server set b/s weight -1", "0 to 256"),
            ("server set b/s weight 101%", "0% to 100%"),
            ("set server b/s health up", "`health up` is not understood"),
            ("server", "server list"),
        ] {
            let problem = parse(line).unwrap().unwrap_err();
            assert!(problem.contains(expected), "{line}: {problem}");
        }
    }

    #[test]
    fn a_part_of_a_weight_is_never_nothing_and_the_whole_is_no_order() {
        for (percent, configured, expected) in
            [(50, 100, Some(50)), (1, 1, Some(1)), (0, 100, Some(0)), (100, 7, None), (33, 10, Some(4))]
        {
            assert_eq!(Weight::Percent(percent).of(configured), expected, "{percent}% of {configured}");
        }
        assert_eq!(Weight::Absolute(100).of(100), Some(100));
    }
}
