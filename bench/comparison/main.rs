//! The same work through `proxy`, HAProxy and nginx in turn, and what each costs.
//! Started by bench/compare, which puts it on the load's core. Never installs or changes anything outside its folder.

mod client;
mod load;
mod origin;
mod process;
mod products;
mod results;
mod works;

use std::error::Error;
use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use clap::Parser;
use serde_json::json;

use self::products::{Product, Running, Site};
use self::results::Run;
use self::works::{How, Measure, WORKS, Work, idle_count};

/// How long access lines may be on their way.
const LOG_PATIENCE: Duration = Duration::from_secs(5);
/// Bytes of a GiB.
const GIB: f64 = 1024.0 * 1024.0 * 1024.0;

/// Compares the cost of the same work.
#[derive(Debug, Parser)]
struct Args {
    /// Rounds; in each one every product does every work
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Seconds of each run
    #[arg(long, default_value_t = 3.0)]
    seconds: f64,
    /// Only these works
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// The program under test
    #[arg(long, default_value = "target/release/proxy")]
    program: PathBuf,
    /// Where results go
    #[arg(long, default_value = "bench/results")]
    results: PathBuf,
}

#[expect(clippy::print_stderr, clippy::print_stdout, reason = "a program of the terminal")]
fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(table) => {
            println!("{table}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("compare: {error}");
            ExitCode::from(2)
        }
    }
}

fn run(args: &Args) -> Result<String, Box<dyn Error>> {
    let wanted = |work: &&Work| args.only.is_empty() || args.only.iter().any(|key| key == work.key);
    let works: Vec<Work> = WORKS.iter().filter(wanted).copied().collect();
    if works.is_empty() {
        let keys: Vec<_> = WORKS.iter().map(|work| work.key).collect();
        return Err(format!("no such work; there are {}", keys.join(", ")).into());
    }
    let folder = tempfile::tempdir()?;
    let site = Site::new(folder.path(), &std::fs::canonicalize(&args.program)?, origin::start()?)?;
    let mut bench = Bench {
        lasting: Duration::from_secs_f64(args.seconds),
        running: Vec::new(),
        site,
        folder: folder.path().to_owned(),
        rate: 0.0,
    };
    let (mut results, mut failures) = (Vec::new(), Vec::new());
    for work in works {
        let mut runs = Vec::new();
        for round in 0..args.rounds {
            if let Err(error) = bench.round(&work, round, &mut runs) {
                failures.push(format!("{}: {error}", work.key));
                break;
            }
        }
        results.push(results::Result { work, runs });
        report(&results);
    }
    std::fs::create_dir_all(&args.results)?;
    results::write_json(&results, &about(args), &args.results.join("compare.json"))?;
    results::plot(&results, &args.results.join("compare.svg"))?;
    let table = results::table(&results);
    if failures.is_empty() { Ok(table) } else { Err(format!("{}\n{table}", failures.join("\n")).into()) }
}

#[expect(clippy::print_stderr, reason = "progress of minutes")]
fn report(results: &[results::Result]) {
    if let Some(last) = results.last() {
        let line = results::table(std::slice::from_ref(last));
        eprintln!("{}", line.lines().last().unwrap_or_default());
    }
}

fn about(args: &Args) -> serde_json::Value {
    let first = |program: &str, flag: &str| {
        let output = Command::new(program).arg(flag).output().ok()?;
        let all = [output.stdout, output.stderr].concat();
        String::from_utf8_lossy(&all).lines().next().map(str::to_owned)
    };
    let processor = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = processor.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": ")).map(|all| all.1);
    json!({
        "proxy": first(&args.program.to_string_lossy(), "--version"),
        "haproxy": first("haproxy", "-v"), "nginx": first("nginx", "-v"),
        "kernel": std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim(),
        "processor": model, "idle_connections": idle_count(), "rounds": args.rounds, "seconds": args.seconds,
    })
}

struct Bench {
    lasting: Duration,
    running: Vec<Running>,
    site: Site,
    folder: PathBuf,
    /// Requests a second for works at a constant rate.
    rate: f64,
}

impl Bench {
    /// Every product once, each round beginning with another one.
    fn round(&mut self, work: &Work, round: usize, runs: &mut Vec<Run>) -> Result<(), Box<dyn Error>> {
        for place in 0..Product::ALL.len() {
            let product = Product::ALL[(place + round) % Product::ALL.len()];
            if !Site::offers(product, work.door) {
                continue;
            }
            let run = match work.how {
                How::Idle => self.idle(work, product)?,
                _ => self.busy(work, product)?,
            };
            runs.push(Run { round, ..run });
        }
        Ok(())
    }

    fn running(&mut self, product: Product) -> Result<&Running, Box<dyn Error>> {
        if let Some(place) = self.running.iter().position(|running| running.product == product) {
            return Ok(&self.running[place]);
        }
        self.running.push(self.site.start(product)?);
        self.running.last().ok_or_else(|| "nothing runs".into())
    }

    fn busy(&mut self, work: &Work, product: Product) -> Result<Run, Box<dyn Error>> {
        if matches!(work.how, How::HalfRate(_)) && self.rate == 0.0 {
            let (seconds, folder) = (self.lasting, self.folder.clone());
            self.rate = WORKS[0].run(self.running(Product::Haproxy)?, seconds, 0.0, &folder).map(half)?;
        }
        let (lasting, rate, folder) = (self.lasting, self.rate, self.folder.clone());
        let running = self.running(product)?;
        let named = |error: Box<dyn Error>| format!("{} through {}: {error}", work.key, product.name());
        measure(work, running, |running| work.run(running, lasting, rate, &folder)).map_err(|error| named(error).into())
    }

    fn idle(&mut self, work: &Work, product: Product) -> Result<Run, Box<dyn Error>> {
        // What it did before would have left it memory to use again.
        self.running.retain(|running| running.product != product);
        let running = self.site.start(product)?;
        let (value, peak_kib) = work.memory(&running)?;
        let requests = idle_count() as u64;
        let empty = Run {
            product,
            round: 0,
            requests,
            lines: requests,
            per_second: 0.0,
            p50: 0.0,
            p99: 0.0,
            cpu_per_request: 0.0,
            value,
            peak_kib,
        };
        Ok(empty)
    }
}

fn half(outcome: load::Outcome) -> f64 {
    outcome.requests as f64 / outcome.took.as_secs_f64() / 2.0
}

/// One run between two looks at the product; every request has to have its line.
fn measure(
    work: &Work,
    running: &Running,
    run: impl FnOnce(&Running) -> Result<load::Outcome, Box<dyn Error>>,
) -> Result<Run, Box<dyn Error>> {
    let before_lines = settled(running, 0);
    process::forget_peak(running.pid())?;
    let before = process::cpu(running.pid())?;
    let outcome = run(running)?;
    let lines = settled(running, before_lines + outcome.requests) - before_lines;
    let cpu = (process::cpu(running.pid())? - before).as_secs_f64();
    if lines < outcome.requests || lines > outcome.requests + outcome.uncounted {
        return Err(format!("{} requests, but {lines} access lines", outcome.requests).into());
    }
    let cpu_per_request = cpu * 1e6 / lines as f64;
    let value = match work.measure {
        Measure::CpuPerRequest | Measure::Memory => cpu_per_request,
        Measure::CpuPerGib => cpu * 1e3 / (outcome.bytes as f64 / GIB),
        Measure::P99 => outcome.p99,
    };
    Ok(Run {
        product: running.product,
        round: 0,
        requests: outcome.requests,
        lines,
        per_second: outcome.requests as f64 / outcome.took.as_secs_f64(),
        p50: outcome.p50,
        p99: outcome.p99,
        cpu_per_request,
        value,
        peak_kib: process::resident(running.pid(), "VmHWM")?,
    })
}

/// Lines once there are so many and no more come.
fn settled(running: &Running, at_least: u64) -> u64 {
    let end = Instant::now() + LOG_PATIENCE;
    let mut lines = running.sink.lines();
    loop {
        std::thread::sleep(Duration::from_millis(100));
        let now = running.sink.lines();
        if now == lines && (now >= at_least || Instant::now() > end) {
            return now;
        }
        lines = now;
    }
}
