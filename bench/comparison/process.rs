//! What a product costs, as the kernel counts it: all processes below the one that was started.
//! Used by `main` around each run. Never looks at a thread alone.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::time::Duration;

use nix::unistd::{SysconfVar, sysconf};

/// Pid, parent, ticks of user and system time of one process.
fn stat(pid: u32) -> Option<(u32, u64)> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name before it may hold anything, closing brackets included.
    let fields: Vec<&str> = text.rsplit_once(')')?.1.split_whitespace().collect();
    let number = |place: usize| fields.get(place)?.parse::<u64>().ok();
    Some((u32::try_from(number(1)?).ok()?, number(11)? + number(12)?))
}

/// `root` and everything that descends from it.
fn family(root: u32) -> io::Result<Vec<u32>> {
    let mut parents = BTreeMap::new();
    for entry in fs::read_dir("/proc")? {
        let Ok(pid) = entry?.file_name().to_string_lossy().parse::<u32>() else { continue };
        if let Some((parent, _)) = stat(pid) {
            parents.insert(pid, parent);
        }
    }
    let descends = |pid: u32| {
        let mut at = pid;
        while at != root {
            match parents.get(&at) {
                Some(parent) => at = *parent,
                None => return false,
            }
        }
        true
    };
    Ok(parents.keys().copied().filter(|pid| descends(*pid)).collect())
}

/// User and system time of the whole family so far.
pub(crate) fn cpu(root: u32) -> io::Result<Duration> {
    let ticks: u64 = family(root)?.into_iter().filter_map(stat).map(|(_, ticks)| ticks).sum();
    let per_second = sysconf(SysconfVar::CLK_TCK)?.unwrap_or(100);
    Ok(Duration::from_secs_f64(ticks as f64 / per_second as f64))
}

/// Has the peak begin anew.
pub(crate) fn forget_peak(root: u32) -> io::Result<()> {
    for pid in family(root)? {
        fs::write(format!("/proc/{pid}/clear_refs"), "5")?;
    }
    Ok(())
}

/// Kilobytes of resident memory of the family: now (`VmRSS`) or the most since [`forget_peak`] (`VmHWM`).
pub(crate) fn resident(root: u32, field: &str) -> io::Result<u64> {
    let mut total = 0;
    for pid in family(root)? {
        let text = fs::read_to_string(format!("/proc/{pid}/status"))?;
        let line = text.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
        total += line.and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok()).unwrap_or(0);
    }
    Ok(total)
}
