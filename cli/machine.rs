//! The memory of the machine, and of this process.

use sysinfo::{MemoryRefreshKind, Pid, ProcessRefreshKind, ProcessesToUpdate, System};

/// Bytes that this process can have: what the machine has available, within the limit of the process's control group (of a
/// container, or of a job). None where the system does not say.
pub fn available() -> Option<u64> {
    let mut system = System::new().ok()?;
    system.refresh_memory_specifics(MemoryRefreshKind::nothing().with_ram());
    let free = system.available_memory();
    Some(free.min(limit(&mut system).unwrap_or(u64::MAX))).filter(|bytes| *bytes > 0)
}

/// What the control group leaves: its limit less what its processes hold. Cached files do not count, for they make way.
fn limit(system: &mut System) -> Option<u64> {
    let own = Pid::from_u32(std::process::id());
    system.refresh_processes_specifics(ProcessesToUpdate::Some(&[own]), false, ProcessRefreshKind::nothing());
    let limits = system.process(own)?.cgroup_limits()?;
    Some(limits.total_memory.saturating_sub(limits.rss))
}

/// The process's largest resident set so far in bytes, from the kernel's own count.
pub fn resident_peak() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|l| l.starts_with("VmHWM:"))?;
    Some(line.split_whitespace().nth(1)?.parse::<u64>().ok()? * 1024)
}
