//! Whether a server takes requests: what the operator ordered and what its checks found, in shared memory.
//! Written by the master (orders) and the probing worker (health), read by balancing and every view.
//! Never decides what a check's result means; pure but for the slot it reads.

use super::counters::{Counter, Slot};

/// What the operator wants of a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Admin {
    /// It takes requests if it can.
    #[default]
    Ready,
    /// No new requests; checks go on.
    Drain,
    /// No new requests, no checks, no idle connections.
    Maint,
}

impl Admin {
    /// Its name in commands.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Ready => "ready",
            Self::Drain => "drain",
            Self::Maint => "maint",
        }
    }
}

/// The operator's orders for one server; they outlive workers and reloads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Orders {
    /// State.
    pub admin: Admin,
    /// Weight instead of the configured one.
    pub weight: Option<u16>,
}

impl Orders {
    fn pack(self) -> u64 {
        self.admin as u64 | self.weight.map_or(0, |weight| u64::from(weight) + 1) << 8
    }

    fn unpack(word: u64) -> Self {
        let admin = match word & 0xff {
            0 => Admin::Ready,
            1 => Admin::Drain,
            _ => Admin::Maint,
        };
        Self { admin, weight: ((word >> 8) as u16).checked_sub(1) }
    }
}

/// How a check ended, in HAProxy's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(u8)]
pub enum CheckStatus {
    /// None has ended yet.
    #[default]
    Initializing,
    /// No socket for it.
    SocketError,
    /// Connected; nothing else was wanted.
    L4Ok,
    /// No connection in time.
    L4Timeout,
    /// No connection; `code` is the errno.
    L4Failed,
    /// The answer is as expected.
    L7Ok,
    /// No whole answer in time.
    L7Timeout,
    /// The answer is no HTTP, or not what was expected beside the status.
    L7Invalid,
    /// The status is not the expected one.
    L7WrongStatus,
    /// TLS was established; nothing else was wanted.
    L6Ok,
    /// There was no TLS session with this server.
    L6Invalid,
}

impl CheckStatus {
    const ALL: [Self; 11] = [
        Self::Initializing,
        Self::SocketError,
        Self::L4Ok,
        Self::L4Timeout,
        Self::L4Failed,
        Self::L7Ok,
        Self::L7Timeout,
        Self::L7Invalid,
        Self::L7WrongStatus,
        Self::L6Ok,
        Self::L6Invalid,
    ];

    /// HAProxy's abbreviation (`check_status`) and description (`check_desc`).
    #[must_use]
    pub fn words(self) -> (&'static str, &'static str) {
        match self {
            Self::Initializing => ("INI", "Initializing"),
            Self::SocketError => ("SOCKERR", "Socket error"),
            Self::L4Ok => ("L4OK", "Layer4 check passed"),
            Self::L4Timeout => ("L4TOUT", "Layer4 timeout"),
            Self::L4Failed => ("L4CON", "Layer4 connection problem"),
            Self::L7Ok => ("L7OK", "Layer7 check passed"),
            Self::L7Timeout => ("L7TOUT", "Layer7 timeout"),
            Self::L7Invalid => ("L7RSP", "Layer7 invalid response"),
            Self::L7WrongStatus => ("L7STS", "Layer7 wrong status"),
            Self::L6Ok => ("L6OK", "Layer6 check passed"),
            Self::L6Invalid => ("L6RSP", "Layer6 invalid response"),
        }
    }

    /// Whether the server passed.
    #[must_use]
    pub fn passed(self) -> bool {
        matches!(self, Self::L4Ok | Self::L6Ok | Self::L7Ok)
    }
}

/// What the checks found so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Health {
    /// Whether the server is up.
    pub up: bool,
    /// HAProxy's `check_health`: 0 is surely down, rise + fall - 1 surely up.
    pub level: u16,
    /// The last check.
    pub status: CheckStatus,
    /// Its HTTP status, or errno.
    pub code: u16,
    /// How long it took, in milliseconds.
    pub millis: u32,
}

impl Health {
    /// Longest duration that is remembered.
    const LONGEST: u32 = (1 << 22) - 1;

    fn pack(self) -> u64 {
        // Bit 0 tells a known state from memory nobody has written yet.
        1 | u64::from(self.up) << 1
            | u64::from(self.level) << 2
            | u64::from(self.status as u8) << 18
            | u64::from(self.code) << 26
            | u64::from(self.millis.min(Self::LONGEST)) << 42
    }

    fn unpack(word: u64) -> Option<Self> {
        let status = CheckStatus::ALL.get(usize::from((word >> 18) as u8)).copied().unwrap_or_default();
        (word & 1 == 1).then_some(Self {
            up: word & 2 == 2,
            level: (word >> 2) as u16,
            status,
            code: (word >> 26) as u16,
            millis: (word >> 42) as u32,
        })
    }

    /// What is known beside the description: a status, or why there was no connection.
    #[must_use]
    pub fn detail(&self) -> Option<String> {
        let errno = || std::io::Error::from_raw_os_error(i32::from(self.code)).to_string();
        match self.status {
            CheckStatus::L4Failed | CheckStatus::SocketError if self.code != 0 => {
                let text = errno();
                Some(text.split(" (os error").next().unwrap_or_default().to_owned())
            }
            _ => None,
        }
    }
}

/// Orders and health of one server at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Standing {
    /// The operator's.
    pub orders: Orders,
    /// The checks'; `None` where none has begun.
    pub health: Option<Health>,
}

impl Standing {
    /// Whether checks, if there are any, let it take requests; a server nobody has checked yet is up.
    #[must_use]
    pub fn is_up(&self, checked: bool) -> bool {
        !checked || self.health.is_none_or(|health| health.up)
    }

    /// Its share of new requests; 0 takes none.
    #[must_use]
    pub fn share(&self, configured: u16, checked: bool) -> u16 {
        if self.orders.admin != Admin::Ready || !self.is_up(checked) {
            return 0;
        }
        self.orders.weight.unwrap_or(configured)
    }
}

impl Slot {
    /// The standing of the server this slot belongs to.
    #[must_use]
    pub fn standing(&self) -> Standing {
        Standing {
            orders: Orders::unpack(self.state(Counter::Orders)),
            health: Health::unpack(self.state(Counter::Health)),
        }
    }

    /// Gives orders; the backend's slot has to announce it.
    pub fn order(&self, orders: Orders) {
        self.set(Counter::Orders, orders.pack());
    }

    /// Notes what a check found; the backend's slot has to announce a change.
    pub fn note_health(&self, health: Health) {
        self.set(Counter::Health, health.pack());
    }

    /// Forgets what checks found.
    pub fn forget_health(&self) {
        for counter in [
            Counter::Health,
            Counter::ChecksFailed,
            Counter::TimesDown,
            Counter::LastChange,
            Counter::Downtime,
            Counter::LastCheck,
        ] {
            self.set(counter, 0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orders_and_health_come_back_as_they_were() {
        for admin in [Admin::Ready, Admin::Drain, Admin::Maint] {
            for weight in [None, Some(0), Some(1), Some(256)] {
                let orders = Orders { admin, weight };
                assert_eq!(Orders::unpack(orders.pack()), orders);
            }
        }
        assert_eq!((Orders::unpack(0), Health::unpack(0)), (Orders::default(), None));
        for (place, status) in CheckStatus::ALL.into_iter().enumerate() {
            assert_eq!(status as usize, place);
            for up in [false, true] {
                let health = Health { up, level: u16::MAX, status, code: 599, millis: Health::LONGEST };
                assert_eq!(Health::unpack(health.pack()), Some(health));
            }
        }
    }

    #[test]
    fn drained_kept_and_dead_servers_have_no_share() {
        let down = Some(Health { up: false, level: 0, status: CheckStatus::L4Failed, code: 111, millis: 0 });
        let with = |admin, weight, health| Standing { orders: Orders { admin, weight }, health };
        for (standing, checked, expected) in [
            (with(Admin::Ready, None, None), true, 7),
            (with(Admin::Ready, Some(3), None), true, 3),
            (with(Admin::Ready, Some(0), None), true, 0),
            (with(Admin::Ready, None, down), true, 0),
            (with(Admin::Ready, None, down), false, 7),
            (with(Admin::Drain, Some(3), None), true, 0),
            (with(Admin::Maint, None, None), false, 0),
        ] {
            assert_eq!(standing.share(7, checked), expected, "{standing:?}");
        }
        assert_eq!(down.and_then(|health| health.detail()).as_deref(), Some("Connection refused"));
    }
}
