//! The load: so many users in a closed loop, a constant rate, idle connections; wrk and h2load where they fit.
//! Called by `main` once per product and round. Counts every request, and fails where one failed.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::error::Error;
use std::io::{self, Write as _};
use std::net::SocketAddr;
use std::process::Command;
use std::rc::Rc;
use std::time::{Duration, Instant};

use tokio::net::UnixStream;
use tokio::sync::Notify;
use tokio::task::LocalSet;

use super::client::{Connection, Security};

/// Time between two looks at the schedule of a constant rate.
const BEAT: Duration = Duration::from_micros(100);

/// How a user's TLS connections begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Handshake {
    Full,
    /// With a ticket, but for the user's first one.
    Resumed,
}

/// What users do.
#[derive(Clone)]
pub(crate) struct Plan {
    pub(crate) address: SocketAddr,
    pub(crate) secured: Option<Handshake>,
    pub(crate) request: Vec<u8>,
    pub(crate) users: usize,
    /// A connection per request.
    pub(crate) fresh: bool,
    pub(crate) lasting: Duration,
}

impl Plan {
    /// Each user has tickets of his own.
    fn security(&self) -> io::Result<Option<Security>> {
        let made = self.secured.map(|handshake| Security::new(handshake == Handshake::Resumed));
        made.transpose().map_err(io::Error::other)
    }
}

/// What a run was, seen from the client.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    pub(crate) requests: u64,
    pub(crate) bytes: u64,
    pub(crate) took: Duration,
    /// Microseconds.
    pub(crate) p50: f64,
    /// Microseconds.
    pub(crate) p99: f64,
    /// Requests at most that were under way when the tool stopped counting, twice a connection in passing.
    pub(crate) uncounted: u64,
}

#[derive(Default)]
struct Record {
    bytes: Cell<u64>,
    times: RefCell<Vec<Duration>>,
    failure: RefCell<Option<io::Error>>,
}

impl Record {
    fn outcome(&self, took: Duration) -> io::Result<Outcome> {
        if let Some(failure) = self.failure.take() {
            return Err(failure);
        }
        let mut times = self.times.take();
        times.sort_unstable();
        let rank = |percent: usize| {
            let place = (times.len() * percent).div_ceil(100).saturating_sub(1);
            times.get(place).map_or(0.0, |time| time.as_secs_f64() * 1e6)
        };
        let (p50, p99) = (rank(50), rank(99));
        Ok(Outcome { requests: times.len() as u64, bytes: self.bytes.get(), took, p50, p99, uncounted: 0 })
    }

    fn fail(&self, error: io::Error) {
        self.failure.borrow_mut().get_or_insert(error);
    }
}

/// Users who ask again as soon as they are answered. All of them finish what they began.
pub(crate) fn closed_loop(plan: &Plan) -> io::Result<Outcome> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let record = Rc::new(Record::default());
    let began = Instant::now();
    let users = LocalSet::new();
    for _ in 0..plan.users {
        let (plan, record) = (plan.clone(), Rc::clone(&record));
        users.spawn_local(async move {
            if let Err(error) = user(&plan, began, &record).await {
                record.fail(error);
            }
        });
    }
    runtime.block_on(users);
    record.outcome(began.elapsed())
}

async fn user(plan: &Plan, began: Instant, record: &Record) -> io::Result<()> {
    let (mut kept, mut first) = (None, true);
    let security = plan.security()?;
    while began.elapsed() < plan.lasting {
        let at = Instant::now();
        let mut connection = match kept.take() {
            Some(connection) => connection,
            None => Connection::open(plan.address, security.as_ref()).await?,
        };
        if !connection.fits(security.as_ref(), std::mem::take(&mut first)) {
            return Err(io::Error::other("a handshake of the wrong kind"));
        }
        let bytes = connection.exchange(&plan.request).await?;
        record.times.borrow_mut().push(at.elapsed());
        record.bytes.set(record.bytes.get() + bytes);
        kept = (!plan.fresh).then_some(connection);
    }
    Ok(())
}

#[derive(Default)]
struct Schedule {
    due: RefCell<VecDeque<Instant>>,
    news: Notify,
    over: Cell<bool>,
}

/// So many requests a second whatever becomes of them, each timed from the moment it was due: a product that
/// stands still makes everybody late whom it kept waiting (no coordinated omission).
pub(crate) fn constant_rate(plan: &Plan, rate: f64) -> io::Result<Outcome> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (record, schedule) = (Rc::new(Record::default()), Rc::new(Schedule::default()));
    let users = LocalSet::new();
    for _ in 0..plan.users {
        let (plan, record, schedule) = (plan.clone(), Rc::clone(&record), Rc::clone(&schedule));
        users.spawn_local(async move {
            if let Err(error) = punctual(&plan, &schedule, &record).await {
                record.fail(error);
            }
        });
    }
    let began = Instant::now();
    users.block_on(&runtime, keep_time(began, plan.lasting, rate, &schedule))?;
    runtime.block_on(users);
    record.outcome(began.elapsed())
}

async fn keep_time(began: Instant, lasting: Duration, rate: f64, schedule: &Schedule) -> io::Result<()> {
    let (beats, drum) = UnixStream::pair()?;
    let drum = drum.into_std()?;
    std::thread::spawn(move || {
        // Ends when nobody listens any more, or listens no longer fast enough.
        while (&drum).write_all(&[0]).is_ok() {
            std::thread::sleep(BEAT);
        }
    });
    let mut sent = 0_u32;
    loop {
        beats.readable().await?;
        let _beats = beats.try_read(&mut [0; 64]);
        loop {
            let due = began + Duration::from_secs_f64(f64::from(sent) / rate);
            if due > Instant::now() {
                break;
            }
            if due > began + lasting {
                schedule.over.set(true);
                schedule.news.notify_waiters();
                return Ok(());
            }
            schedule.due.borrow_mut().push_back(due);
            schedule.news.notify_one();
            sent += 1;
        }
    }
}

async fn punctual(plan: &Plan, schedule: &Schedule, record: &Record) -> io::Result<()> {
    let mut connection = Connection::open(plan.address, plan.security()?.as_ref()).await?;
    loop {
        let news = schedule.news.notified();
        let next = schedule.due.borrow_mut().pop_front();
        match next {
            Some(due) => {
                record.bytes.set(record.bytes.get() + connection.exchange(&plan.request).await?);
                record.times.borrow_mut().push(due.elapsed());
            }
            None if schedule.over.get() => return Ok(()),
            None => news.await,
        }
    }
}

/// Opens so many connections, has each answered once, and holds them while `look` looks.
pub(crate) fn idle<T>(plan: &Plan, count: usize, look: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let held = Rc::new(RefCell::new(Vec::with_capacity(count)));
    let (left, record) = (Rc::new(Cell::new(count)), Rc::new(Record::default()));
    let users = LocalSet::new();
    for _ in 0..plan.users {
        let (plan, held, left, record) = (plan.clone(), Rc::clone(&held), Rc::clone(&left), Rc::clone(&record));
        users.spawn_local(async move {
            let Ok(security) = plan.security() else { return };
            while left.get() > 0 {
                left.set(left.get() - 1);
                let opened = async {
                    let mut connection = Connection::open(plan.address, security.as_ref()).await?;
                    connection.exchange(&plan.request).await?;
                    connection.rest();
                    io::Result::Ok(connection)
                };
                match opened.await {
                    Ok(connection) => held.borrow_mut().push(connection),
                    Err(error) => return record.fail(error),
                }
            }
        });
    }
    runtime.block_on(users);
    record.outcome(Duration::ZERO)?;
    look()
}

/// wrk: the lightest load there is for small answers on kept connections.
pub(crate) fn wrk(url: &str, connections: u64, lasting: Duration) -> Result<Outcome, Box<dyn Error>> {
    let seconds = lasting.as_secs().max(1);
    let output = Command::new("wrk")
        .args(["-t", "1", "-c", &connections.to_string(), "-d", &format!("{seconds}s"), "--latency", url])
        .output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    if text.contains("Non-2xx") || text.contains("Socket errors") {
        return Err(text.into());
    }
    let summary = text.lines().find(|line| line.contains(" requests in ")).ok_or_else(|| text.to_string())?;
    let mut words = summary.split_whitespace();
    let requests = words.next().and_then(|word| word.parse().ok()).ok_or("wrk counted nothing")?;
    let took = words.nth(2).and_then(|word| microseconds(word.trim_end_matches(','))).ok_or("wrk took no time")?;
    let percentile = |name: &str| {
        let line = text.lines().find_map(|line| line.trim().strip_prefix(name));
        line.and_then(|rest| microseconds(rest.trim())).unwrap_or(0.0)
    };
    let (p50, p99) = (percentile("50%"), percentile("99%"));
    let took = Duration::from_secs_f64(took / 1e6);
    Ok(Outcome { requests, bytes: 0, took, p50, p99, uncounted: 2 * connections })
}

/// h2load: HTTP/2, so many streams on so many connections.
pub(crate) fn h2load(url: &str, requests: u64, log: &str) -> Result<Outcome, Box<dyn Error>> {
    // It appends.
    match std::fs::remove_file(log) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error.into()),
        _ => {}
    }
    let output = Command::new("h2load")
        .args(["-t", "1", "-c", "10", "-m", "10", "-n", &requests.to_string(), "--log-file", log, url])
        .output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    if !text.contains("Application protocol: h2") {
        return Err("no HTTP/2 there".into());
    }
    if !text.contains(&format!("{requests} succeeded, 0 failed, 0 errored")) {
        return Err(text.into());
    }
    let finished = text.lines().find_map(|line| line.strip_prefix("finished in ")).ok_or("h2load did not finish")?;
    let took = finished.split(',').next().and_then(microseconds).ok_or("h2load took no time")?;
    let record = Record::default();
    for line in std::fs::read_to_string(log)?.lines() {
        let time = line.split('\t').nth(2).and_then(|text| text.parse().ok()).ok_or("h2load's log changed")?;
        record.times.borrow_mut().push(Duration::from_micros(time));
    }
    Ok(record.outcome(Duration::from_secs_f64(took / 1e6))?)
}

/// `1.23ms` and its like.
fn microseconds(text: &str) -> Option<f64> {
    let (number, unit) = text.split_at(text.find(|c: char| c.is_ascii_alphabetic())?);
    let factor = match unit {
        "us" => 1.0,
        "ms" => 1e3,
        "s" => 1e6,
        "m" => 6e7,
        _ => return None,
    };
    Some(number.parse::<f64>().ok()? * factor)
}
