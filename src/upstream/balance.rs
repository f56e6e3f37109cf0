//! Which server is next: pure arithmetic over weights, loads and tickets.
//! Called by `Backend`. Never touches a socket or the shared memory.

/// A server as balancing sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Share {
    /// Its share of new requests; 0 takes none.
    pub weight: u16,
    /// Takes requests only while no other server does.
    pub backup: bool,
}

/// Who takes requests at present, and in which order. Made anew whenever a server's standing changes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Schedule {
    /// Places and weights of those servers, in configuration order.
    usable: Vec<(usize, u16)>,
    /// One round: each of them as often as its weight, evenly spread.
    round: Vec<usize>,
}

impl Schedule {
    /// The servers with a share; without any, the first backup server with one (as HAProxy without `allbackups`).
    #[must_use]
    pub fn new(shares: &[Share]) -> Self {
        let with_share = |backup| {
            let those = shares.iter().enumerate().filter(move |(_, share)| share.backup == backup && share.weight > 0);
            those.map(|(place, share)| (place, share.weight))
        };
        let mut usable: Vec<_> = with_share(false).collect();
        if usable.is_empty() {
            usable = with_share(true).take(1).collect();
        }
        let round = round(&usable);
        Self { usable, round }
    }

    /// How many servers take requests.
    #[must_use]
    pub fn usable(&self) -> usize {
        self.usable.len()
    }

    /// Whether a server takes requests.
    #[must_use]
    pub fn holds(&self, server: usize) -> bool {
        self.usable.iter().any(|(place, _)| *place == server)
    }

    /// The next server behind this one that takes requests, if there is another.
    #[must_use]
    pub fn after(&self, server: usize) -> Option<usize> {
        let mut places = self.usable.iter().map(|(place, _)| *place).filter(|place| *place != server);
        let first = places.clone().next();
        places.find(|place| *place > server).or(first)
    }

    /// The server of a ticket in the one order that everybody walks.
    #[must_use]
    pub fn round_robin(&self, ticket: u64) -> Option<usize> {
        let length = u64::try_from(self.round.len()).ok().filter(|length| *length > 0)?;
        self.round.get(usize::try_from(ticket % length).ok()?).copied()
    }

    /// The server with the fewest sessions for its weight; among equals they take turns.
    #[must_use]
    pub fn least(&self, ticket: u64, load: impl Fn(usize) -> u64) -> Option<usize> {
        let count = self.usable.len();
        let first = usize::try_from(ticket % u64::try_from(count).ok().filter(|count| *count > 0)?).ok()?;
        let turns = self.usable.iter().cycle().skip(first).take(count);
        let mut best: Option<(usize, u128, u128)> = None;
        for (place, weight) in turns {
            let (load, weight) = (u128::from(load(*place)) + 1, u128::from(*weight));
            // load / weight < best load / best weight, without a division.
            if best.is_none_or(|(_, least, its)| load * its < least * weight) {
                best = Some((*place, load, weight));
            }
        }
        best.map(|(place, _, _)| place)
    }

    /// The less loaded of two servers drawn by weight.
    #[must_use]
    pub fn random(&self, ticket: u64, load: impl Fn(usize) -> u64) -> Option<usize> {
        let draw = |salt: u64| self.round_robin(mix(ticket.wrapping_mul(2).wrapping_add(salt)));
        let (one, other) = (draw(0)?, draw(1)?);
        let relative = |server: usize| {
            let weight = self.usable.iter().find(|(place, _)| *place == server).map_or(1, |(_, weight)| *weight);
            // Sessions per weight, in 256ths: the heaviest weight.
            (load(server) + 1) * 256 / u64::from(weight)
        };
        Some(if one == other || relative(one) <= relative(other) { one } else { other })
    }

    /// The server of a client: the same one as long as it takes requests, whoever else comes or goes
    /// (weighted rendezvous hashing).
    #[must_use]
    pub fn source(&self, client: u64, identity: impl Fn(usize) -> u64) -> Option<usize> {
        let score = |place: usize, weight: u16| {
            let drawn = mix(client ^ identity(place)) >> 11;
            // Uniform in (0, 1): 53 bits, as many as a float holds.
            #[expect(clippy::cast_precision_loss, reason = "53 bits fit")]
            let uniform = (drawn as f64 + 0.5) / (1_u64 << 53) as f64;
            f64::from(weight) / -uniform.ln()
        };
        let scored = self.usable.iter().map(|(place, weight)| (*place, score(*place, *weight)));
        scored.max_by(|one, other| one.1.total_cmp(&other.1)).map(|(place, _)| place)
    }
}

/// A number that looks like no relation of `value` (the finaliser of splitmix64).
#[must_use]
pub fn mix(value: u64) -> u64 {
    let mut mixed = value.wrapping_add(0x9E37_79B9_7F4A_7C15);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    mixed ^ (mixed >> 31)
}

/// A number for a name or an address.
#[must_use]
pub fn digest(bytes: &[u8]) -> u64 {
    // FNV-1a, then mixed: short inputs differ in few bits.
    mix(bytes.iter().fold(0xCBF2_9CE4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01B3)))
}

/// Servers of one weight that take their turns.
struct Group {
    members: Vec<usize>,
    /// Turns in a round, of all members together.
    turns: i64,
    credit: i64,
    next: usize,
}

/// Smooth weighted round robin: at each step everybody earns his weight, and the richest pays for all.
/// Servers of equal weight share an account, so that this costs what the number of weights costs.
fn round(usable: &[(usize, u16)]) -> Vec<usize> {
    let divisor = usable.iter().fold(0, |divisor, (_, weight)| gcd(divisor, *weight)).max(1);
    let mut groups: Vec<(u16, Group)> = Vec::new();
    for (place, weight) in usable {
        let weight = weight / divisor;
        match groups.iter_mut().find(|(known, _)| *known == weight) {
            Some((_, group)) => {
                group.members.push(*place);
                group.turns += i64::from(weight);
            }
            None => {
                let group = Group { members: vec![*place], turns: i64::from(weight), credit: 0, next: 0 };
                groups.push((weight, group));
            }
        }
    }
    let total: i64 = groups.iter().map(|(_, group)| group.turns).sum();
    let mut order = Vec::with_capacity(usize::try_from(total).unwrap_or(0));
    for _ in 0..total {
        groups.iter_mut().for_each(|(_, group)| group.credit += group.turns);
        // The first among equals: `max_by_key` would take the last.
        let richest = groups.iter_mut().rev().max_by_key(|(_, group)| group.credit);
        let Some((_, group)) = richest else { break };
        group.credit -= total;
        order.push(group.members[group.next]);
        group.next = (group.next + 1) % group.members.len();
    }
    order
}

fn gcd(one: u16, other: u16) -> u16 {
    if other == 0 { one } else { gcd(other, one % other) }
}

/// What to do after a connection attempt failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Attempt {
    /// Try this server at once: it is another one.
    Redispatch(usize),
    /// Try the same server after the turn-around delay, as HAProxy does, so that a server that
    /// restarts is not hammered.
    Again,
    /// Out of retries.
    GiveUp,
}

/// Decides the attempt after `failed` failures (HAProxy: `retries`, `option redispatch`: the last retry
/// goes to another server). A server that takes no requests any more is not tried again; `other` is
/// the one that redispatching would choose.
#[must_use]
pub fn next_attempt(failed: u32, retries: u32, usable: bool, other: Option<usize>) -> Attempt {
    if failed > retries {
        return Attempt::GiveUp;
    }
    match other {
        Some(other) if failed == retries || !usable => Attempt::Redispatch(other),
        _ => Attempt::Again,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn schedule(weights: &[u16]) -> Schedule {
        let shares: Vec<_> = weights.iter().map(|weight| Share { weight: *weight, backup: false }).collect();
        Schedule::new(&shares)
    }

    fn walk(schedule: &Schedule, count: u64) -> Vec<usize> {
        (0..count).filter_map(|ticket| schedule.round_robin(ticket)).collect()
    }

    #[test]
    fn equal_servers_take_turns_in_their_order_whatever_their_weight() {
        for weight in [1, 7, 100, 256] {
            assert_eq!(walk(&schedule(&[weight; 3]), 5), [0, 1, 2, 0, 1]);
        }
        assert!(walk(&schedule(&[]), 5).is_empty());
        assert!(walk(&schedule(&[0, 0]), 5).is_empty());
        assert_eq!(walk(&schedule(&[1, 0, 1]), 4), [0, 2, 0, 2]);
    }

    #[test]
    fn a_round_gives_every_server_its_weight_and_is_smooth() {
        assert_eq!(walk(&schedule(&[5, 1, 1]), 7), [0, 1, 0, 0, 0, 2, 0]);
        for weights in [vec![3, 1], vec![100, 50, 50], vec![1, 2, 3, 4, 5], vec![256, 1], vec![10, 10, 1]] {
            let schedule = schedule(&weights);
            let divisor = weights.iter().fold(0, |divisor, weight| gcd(divisor, *weight));
            let total: u16 = weights.iter().map(|weight| weight / divisor).sum();
            let order = walk(&schedule, u64::from(total));
            for (place, weight) in weights.iter().enumerate() {
                assert_eq!(order.iter().filter(|server| **server == place).count(), usize::from(weight / divisor));
            }
            // Nobody is ever more than one group's turn ahead of his share.
            for (place, weight) in weights.iter().enumerate() {
                for end in 1..=order.len() {
                    let had = order[..end].iter().filter(|server| **server == place).count();
                    let due = end * usize::from(weight / divisor) / usize::from(total);
                    assert!(had.abs_diff(due) <= 2, "{weights:?}: {place} had {had} of {due} after {end}");
                }
            }
        }
    }

    #[test]
    fn only_the_first_backup_serves_and_only_alone() {
        let share = |weight, backup| Share { weight, backup };
        let both = [share(1, false), share(1, true), share(1, true)];
        assert_eq!(walk(&Schedule::new(&both), 3), [0, 0, 0]);
        assert_eq!(walk(&Schedule::new(&[share(0, false), both[1], both[2]]), 3), [1, 1, 1]);
        assert_eq!(walk(&Schedule::new(&[share(0, false), share(0, true), both[2]]), 3), [2, 2, 2]);
        assert_eq!(Schedule::new(&[share(0, false), share(0, true)]).usable(), 0);
    }

    #[test]
    fn the_least_loaded_for_its_weight_is_chosen_and_equals_take_turns() {
        let equal = schedule(&[1, 1, 1]);
        let turns: Vec<_> = (0..4).filter_map(|ticket| equal.least(ticket, |_| 0)).collect();
        assert_eq!(turns, [0, 1, 2, 0]);
        let loads = [5, 2, 9];
        assert!((0..9).all(|ticket| equal.least(ticket, |server| loads[server]) == Some(1)));
        // 6/1 against 9/3.
        assert!((0..9).all(|ticket| schedule(&[1, 3]).least(ticket, |server| [5, 8][server]) == Some(1)));
        assert_eq!(schedule(&[0]).least(0, |_| 0), None);
    }

    #[test]
    fn random_draws_follow_the_weights_and_avoid_load() {
        let weighted = schedule(&[3, 1]);
        let first = (0..10_000).filter(|ticket| weighted.random(*ticket, |_| 0) == Some(0)).count();
        // Two draws, equally loaded for their weight only if the heavier wins: at least its share.
        assert!(first >= 7_000, "{first}");
        let busy = (0..10_000).filter(|ticket| schedule(&[1, 1]).random(*ticket, |server| [0, 9][server]) == Some(0));
        assert!(busy.count() > 7_000);
        assert_eq!(schedule(&[]).random(3, |_| 0), None);
    }

    #[test]
    fn a_client_keeps_its_server_when_others_come_and_go() {
        let identity = |server: usize| digest(format!("s{server}").as_bytes());
        let all = schedule(&[1, 1, 1, 1]);
        let without = schedule(&[1, 1, 0, 1]);
        let mut counts = [0; 4];
        for client in 0..10_000_u64 {
            let client = mix(client);
            let server = all.source(client, identity).unwrap();
            counts[server] += 1;
            if server != 2 {
                assert_eq!(without.source(client, identity), Some(server));
            }
        }
        assert!(counts.iter().all(|count| (2_300..2_700).contains(count)), "{counts:?}");
        let heavy = schedule(&[3, 1]);
        let first = (0..10_000_u64).filter(|client| heavy.source(mix(*client), identity) == Some(0)).count();
        assert!((7_300..7_700).contains(&first), "{first}");
    }

    #[test]
    fn the_last_retry_goes_to_another_server() {
        let other = schedule(&[1, 1, 1]).after(2);
        assert_eq!(other, Some(0));
        assert_eq!(next_attempt(1, 3, true, other), Attempt::Again);
        assert_eq!(next_attempt(3, 3, true, other), Attempt::Redispatch(0));
        assert_eq!(next_attempt(4, 3, true, other), Attempt::GiveUp);
    }

    #[test]
    fn a_server_that_went_down_is_not_tried_again() {
        assert_eq!(next_attempt(1, 3, false, schedule(&[1, 0, 1]).after(1)), Attempt::Redispatch(2));
        assert_eq!(next_attempt(1, 3, false, None), Attempt::Again);
    }

    #[test]
    fn without_redispatch_or_a_second_server_the_same_one_is_tried() {
        assert_eq!(schedule(&[1]).after(0), None);
        assert_eq!(next_attempt(3, 3, true, None), Attempt::Again);
        assert_eq!(next_attempt(1, 0, true, None), Attempt::GiveUp);
    }
}
