//! What the benchmarks share: medians, and the CPU time of a process.

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

/// User and system time of a process, all its threads.
///
/// # Errors
/// When it has ended.
pub fn cpu_time(pid: u32) -> std::io::Result<Duration> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The name in parentheses may hold spaces; utime and stime are the 12th and 13th field behind it.
    let fields: Vec<&str> = stat
        .rsplit(')')
        .next()
        .unwrap_or_default()
        .split_whitespace()
        .collect();
    let ticks = |index: usize| {
        fields
            .get(index)
            .and_then(|field| field.parse::<u64>().ok())
            .unwrap_or(0)
    };
    Ok(Duration::from_millis(
        (ticks(11) + ticks(12)) * 1000 / TICKS_PER_SECOND,
    ))
}

/// The process of the given name that this one has started.
///
/// # Errors
/// When /proc cannot be read.
pub fn child_named(name: &str) -> std::io::Result<Option<u32>> {
    let own = std::process::id().to_string();
    for entry in Path::new("/proc").read_dir()?.flatten() {
        let Some(pid) = entry
            .file_name()
            .to_str()
            .and_then(|text| text.parse().ok())
        else {
            continue;
        };
        let Ok(stat) = std::fs::read_to_string(entry.path().join("stat")) else {
            continue;
        };
        let parent = stat
            .rsplit(')')
            .next()
            .and_then(|rest| rest.split_whitespace().nth(1));
        // The kernel keeps 15 characters of a name.
        let short: String = name.chars().take(15).collect();
        if parent == Some(own.as_str()) && stat.contains(&format!("({short})")) {
            return Ok(Some(pid));
        }
    }
    Ok(None)
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
}
