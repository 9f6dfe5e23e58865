//! Confines a decoder before it reads pictures: it can compute and use the pipes that it was given, and so can
//! a picture that exploits it.
//!
//! There are two layers, in case one fails: Landlock denies access to files, ports and other processes;
//! seccomp kills a process that makes a system call that decoding does not need.

use std::{collections::BTreeMap, env::consts::ARCH};

use landlock::{
    ABI, Access, AccessFs, AccessNet, Ruleset, RulesetAttr, RulesetError, RulesetStatus, Scope,
};
use nix::libc::{self, c_int, c_long};
use rustix::{
    process::getpid,
    time::{ClockId, clock_gettime},
};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule,
};

/// The newest Landlock version to request; an older kernel applies the subset that it supports.
const LANDLOCK: ABI = ABI::V10;

/// System calls that are harmless with any arguments.
const HARMLESS: &[c_long] = &[
    // The pipes.
    libc::SYS_read,
    libc::SYS_write,
    libc::SYS_readv,
    libc::SYS_writev,
    libc::SYS_close,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_poll,
    libc::SYS_ppoll,
    // Memory.
    libc::SYS_brk,
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_madvise,
    libc::SYS_membarrier,
    // Threads.
    libc::SYS_futex,
    libc::SYS_set_robust_list,
    libc::SYS_rseq,
    libc::SYS_gettid,
    libc::SYS_getpid,
    libc::SYS_sched_yield,
    libc::SYS_sched_getaffinity,
    libc::SYS_getcpu,
    // Fails by `unsupported`, so that the C library uses `clone` instead.
    libc::SYS_clone3,
    // Time.
    libc::SYS_clock_gettime,
    libc::SYS_clock_getres,
    libc::SYS_gettimeofday,
    libc::SYS_clock_nanosleep,
    libc::SYS_nanosleep,
    // Signals to itself.
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sigaltstack,
    libc::SYS_restart_syscall,
    // Statistics. The C library's sort queries the amount of memory.
    libc::SYS_getrusage,
    libc::SYS_times,
    libc::SYS_sysinfo,
    libc::SYS_getrandom,
    // Exit.
    libc::SYS_exit,
    libc::SYS_exit_group,
];

/// Allowed commands of `fcntl`. Others can send signals to other processes.
const FCNTL_COMMANDS: [c_int; 4] =
    [libc::F_GETFD, libc::F_SETFD, libc::F_GETFL, libc::F_DUPFD_CLOEXEC];

/// The resource of `prlimit64`. Its type differs between C libraries.
const RLIMIT_CPU: c_int = 0;

/// Confines this thread and all that it starts, permanently. Returns what this system does not support. The
/// filter of system calls also applies to threads that already run.
pub(super) fn enter() -> Vec<String> {
    // The first clock call locates the kernel's vDSO, by reading /proc if necessary.
    let _ = clock_gettime(ClockId::ProcessCPUTime);
    let denied = deny_access().unwrap_or_else(|error| Some(error.to_string()));
    let denied = denied.map(|why| format!("Landlock is missing ({why})"));
    let filtered = filter_calls().err().map(|error| format!("seccomp is missing ({error})"));
    denied.into_iter().chain(filtered).collect()
}

/// Denies all access that Landlock controls, without exceptions, because all files that a decoder needs are
/// already open. `Some` with a reason if the kernel has no Landlock.
fn deny_access() -> std::result::Result<Option<String>, RulesetError> {
    let status = Ruleset::default()
        .handle_access(AccessFs::from_all(LANDLOCK))?
        .handle_access(AccessNet::from_all(LANDLOCK))?
        .scope(Scope::from_all(LANDLOCK))?
        .create()?
        .restrict_self()?;
    let missing = status.ruleset == RulesetStatus::NotEnforced;
    Ok(missing.then(|| "not in this kernel".to_owned()))
}

type Result<T> = std::result::Result<T, seccompiler::Error>;

fn filter_calls() -> Result<()> {
    let (unsupported, allowed) = (unsupported()?, allowed()?);
    // In this order, because the second allows no further filter. The stricter result of both counts.
    seccompiler::apply_filter_all_threads(&unsupported)?;
    seccompiler::apply_filter_all_threads(&allowed)
}

/// Calls that fail without killing the process. A filter cannot see the flags of `clone3`; the C library tries
/// it before it uses `clone`.
fn unsupported() -> Result<BpfProgram> {
    let fail = SeccompAction::Errno(libc::ENOSYS.unsigned_abs());
    program([(libc::SYS_clone3, Vec::new())], SeccompAction::Allow, fail)
}

/// The allowed calls. Any other call kills the process.
fn allowed() -> Result<BpfProgram> {
    let this = getpid().as_raw_nonzero().get();
    let to_itself = when(vec![equal(0, this)?])?;
    let fcntl = FCNTL_COMMANDS.map(|command| when(vec![equal(1, command)?]));
    let conditional = [
        // No executable memory.
        (libc::SYS_mmap, vec![when(vec![masked(2, libc::PROT_EXEC, 0)?])?]),
        (libc::SYS_mprotect, vec![when(vec![masked(2, libc::PROT_EXEC, 0)?])?]),
        // New threads, but no new processes.
        (libc::SYS_clone, vec![when(vec![masked(0, libc::CLONE_THREAD, libc::CLONE_THREAD)?])?]),
        // Names of threads and, by the allocator, of its memory.
        (
            libc::SYS_prctl,
            vec![
                when(vec![equal(0, libc::PR_SET_NAME)?])?,
                when(vec![equal(0, libc::PR_SET_VMA)?, equal(1, libc::PR_SET_VMA_ANON_NAME)?])?,
            ],
        ),
        // For `abort` and for the watcher that kills this process.
        (libc::SYS_kill, vec![to_itself.clone()]),
        (libc::SYS_tgkill, vec![to_itself]),
        // Its own limit of processor time, which is set for every picture. Root could raise other limits.
        (libc::SYS_prlimit64, vec![when(vec![equal(0, 0)?, equal(1, RLIMIT_CPU)?])?]),
        (libc::SYS_fcntl, fcntl.into_iter().collect::<Result<_>>()?),
    ];
    let harmless = HARMLESS.iter().map(|&call| (call, Vec::new()));
    program(harmless.chain(conditional), SeccompAction::KillProcess, SeccompAction::Allow)
}

/// A rule that applies if all conditions hold.
fn when(conditions: Vec<SeccompCondition>) -> Result<SeccompRule> {
    Ok(SeccompRule::new(conditions)?)
}

/// The argument equals `value`.
fn equal(argument: u8, value: c_int) -> Result<SeccompCondition> {
    condition(argument, SeccompCmpOp::Eq, value)
}

/// The masked bits of the argument equal `value`.
fn masked(argument: u8, bits: c_int, value: c_int) -> Result<SeccompCondition> {
    condition(argument, SeccompCmpOp::MaskedEq(bits.unsigned_abs().into()), value)
}

/// All arguments that the rules test have 32 bits.
fn condition(argument: u8, operator: SeccompCmpOp, value: c_int) -> Result<SeccompCondition> {
    let (length, value) = (SeccompCmpArgLen::Dword, value.unsigned_abs().into());
    Ok(SeccompCondition::new(argument, length, operator, value)?)
}

/// A filter for this architecture. A call without rules matches with any arguments.
fn program(
    calls: impl IntoIterator<Item = (c_long, Vec<SeccompRule>)>,
    otherwise: SeccompAction,
    matching: SeccompAction,
) -> Result<BpfProgram> {
    let calls: BTreeMap<_, _> = calls.into_iter().collect();
    let filter = SeccompFilter::new(calls, otherwise, matching, ARCH.try_into()?)?;
    Ok(filter.try_into()?)
}
