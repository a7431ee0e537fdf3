//! What the benchmarks share: medians, and the CPU time and memory of processes.

pub mod failover;
pub mod proxy;
pub mod replication;
pub mod routing;

use std::path::Path;
use std::time::Duration;

/// Clock ticks a second in /proc (USER_HZ of Linux on every platform that Tandem runs on; proc_pid_stat(5)).
const TICKS_PER_SECOND: u64 = 100;

/// The median; `None` of nothing.
pub fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied()
}

/// The smallest value that at least this part of `sorted` does not exceed; `None` of nothing.
pub fn quantile(sorted: &[f64], part: f64) -> Option<f64> {
    let last = sorted.len().checked_sub(1)?;
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss
    )]
    let index = (sorted.len() as f64 * part).ceil() as usize;
    sorted.get(index.saturating_sub(1).min(last)).copied()
}

/// Fields of `/proc/PID/stat` behind the name in parentheses, which may hold spaces itself.
fn stat_fields(stat: &str) -> Vec<&str> {
    let behind = stat.rsplit(')').next().unwrap_or_default();
    behind.split_whitespace().collect()
}

/// The time that stands in these fields, counted from behind the name.
fn stat_time(fields: &[&str], indexes: &[usize]) -> Duration {
    let ticks = indexes
        .iter()
        .filter_map(|&index| fields.get(index)?.parse::<u64>().ok());
    Duration::from_millis(ticks.sum::<u64>() * 1000 / TICKS_PER_SECOND)
}

/// User and system time of a process, all its threads.
///
/// # Errors
/// When it has ended.
pub fn cpu_time(pid: u32) -> std::io::Result<Duration> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    Ok(stat_time(&stat_fields(&stat), &[11, 12]))
}

/// User and system time of a process and of its children, those included that have ended and were waited for: what a
/// PostgreSQL server has spent, given its postmaster.
///
/// # Errors
/// When it has ended, or /proc cannot be read.
pub fn cpu_time_with_children(pid: u32) -> std::io::Result<Duration> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let mut spent = stat_time(&stat_fields(&stat), &[11, 12, 13, 14]);
    let parent = pid.to_string();
    for entry in Path::new("/proc").read_dir()?.flatten() {
        // Other processes may end while we look.
        let Ok(stat) = std::fs::read_to_string(entry.path().join("stat")) else {
            continue;
        };
        let fields = stat_fields(&stat);
        if fields.get(1) == Some(&parent.as_str()) {
            spent += stat_time(&fields, &[11, 12]);
        }
    }
    Ok(spent)
}

/// The most memory that a process has had resident, in bytes (VmHWM of proc_pid_status(5)).
///
/// # Errors
/// When it has ended.
pub fn peak_memory(pid: u32) -> std::io::Result<u64> {
    status_bytes(pid, "VmHWM:")
}

/// The memory that a process has resident now, in bytes (VmRSS of proc_pid_status(5)).
///
/// # Errors
/// When it has ended.
pub fn resident_memory(pid: u32) -> std::io::Result<u64> {
    status_bytes(pid, "VmRSS:")
}

fn status_bytes(pid: u32, label: &str) -> std::io::Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let kilobytes = status
        .lines()
        .find_map(|line| line.strip_prefix(label))
        .and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok());
    kilobytes
        .map(|kilobytes| kilobytes * 1024)
        .ok_or_else(|| std::io::Error::other(format!("no {label} line: the process has ended")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle_one_in_order() {
        assert_eq!(median(&[9.0, 1.0, 5.0]), Some(5.0));
        assert_eq!(median(&[]), None);
    }

    #[test]
    fn a_quantile_is_one_of_the_values() {
        let values: Vec<_> = (1..=100).map(f64::from).collect();
        let of = |part| quantile(&values, part);
        assert_eq!(of(0.5), Some(50.0));
        assert_eq!(of(0.99), Some(99.0));
        assert_eq!(of(1.0), Some(100.0));
        assert_eq!(of(0.0), Some(1.0));
        assert_eq!(quantile(&[], 0.5), None);
    }

    #[test]
    fn time_spent_shows_in_the_cpu_time_of_this_process() {
        let before = cpu_time(std::process::id()).expect("this process runs");
        let mut sum = 0u64;
        while cpu_time(std::process::id()).expect("this process runs")
            < before + Duration::from_millis(30)
        {
            sum = std::hint::black_box(sum.wrapping_add(1));
        }
        assert!(sum > 0);
    }

    #[test]
    fn time_of_children_counts_also_after_they_have_ended() {
        let own = std::process::id();
        let before = cpu_time_with_children(own).expect("this process runs");
        let spin = "i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done";
        let status = std::process::Command::new("sh").args(["-c", spin]).status();
        assert!(status.expect("a shell").success());
        let own_time = cpu_time(own).expect("this process runs");
        let after = cpu_time_with_children(own).expect("this process runs");
        assert!(after > before && after > own_time);
    }

    #[test]
    fn the_peak_of_memory_is_at_least_a_page() {
        assert!(peak_memory(std::process::id()).expect("this process runs") >= 4096);
    }
}
