//! What a decoder may still do once it looks at pictures: compute, and talk through the pipes that
//! it was given. A picture that takes its decoder over gets no further than that.
//!
//! Twice, so that one holds where the other fails: Landlock denies what can be named (files, ports,
//! other processes), seccomp ends whoever makes a system call that decoding does not need.

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

/// The newest Landlock that is asked for; an older kernel gives what it has.
const LANDLOCK: ABI = ABI::V10;

/// System calls that do no harm, whatever they are called with.
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
    // Refused by `refusals`, so that the C library takes `clone` instead.
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
    // Figures. The C library sorts large arrays by how much memory there is.
    libc::SYS_getrusage,
    libc::SYS_times,
    libc::SYS_sysinfo,
    libc::SYS_getrandom,
    // The end.
    libc::SYS_exit,
    libc::SYS_exit_group,
];

/// What `fcntl` may do. Among the rest is having signals sent to other processes.
const FCNTL: [c_int; 4] = [libc::F_GETFD, libc::F_SETFD, libc::F_GETFL, libc::F_DUPFD_CLOEXEC];

/// The resource of `prlimit64`; its type in the C library differs from one to the other.
const RLIMIT_CPU: c_int = 0;

/// Shuts this thread and all that it starts in, for good. Says what this system cannot do for it.
/// The filter of system calls holds in threads that run already, too.
pub(super) fn enter() -> Vec<String> {
    // The first look at a clock finds out where the kernel keeps its own, from /proc if need be.
    let _ = clock_gettime(ClockId::ProcessCPUTime);
    let denied = deny_access().unwrap_or_else(|error| Some(error.to_string()));
    let denied = denied.map(|why| format!("Landlock is missing ({why})"));
    let filtered = filter_calls().err().map(|error| format!("seccomp is missing ({error})"));
    denied.into_iter().chain(filtered).collect()
}

/// Denies everything that Landlock knows of; without exceptions, since all that a decoder needs is
/// open already. `Some` where there is no Landlock.
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
    let (refusals, allowed) = (refusals()?, allowed()?);
    // In this order: the latter allows no further filter. Of two answers the harder one counts.
    seccompiler::apply_filter_all_threads(&refusals)?;
    seccompiler::apply_filter_all_threads(&allowed)
}

/// Calls that are refused without ending the caller. What flags `clone3` has cannot be told from
/// its arguments; the C library tries it before it uses `clone`.
fn refusals() -> Result<BpfProgram> {
    let refuse = SeccompAction::Errno(libc::ENOSYS.unsigned_abs());
    program([(libc::SYS_clone3, Vec::new())], SeccompAction::Allow, refuse)
}

/// The calls that there are; any other one ends the process.
fn allowed() -> Result<BpfProgram> {
    let this = getpid().as_raw_nonzero().get();
    let to_itself = when(vec![equal(0, this)?])?;
    let fcntl = FCNTL.map(|command| when(vec![equal(1, command)?]));
    let conditional = [
        // Data never becomes code.
        (libc::SYS_mmap, vec![when(vec![masked(2, libc::PROT_EXEC, 0)?])?]),
        (libc::SYS_mprotect, vec![when(vec![masked(2, libc::PROT_EXEC, 0)?])?]),
        // Threads, no processes.
        (libc::SYS_clone, vec![when(vec![masked(0, libc::CLONE_THREAD, libc::CLONE_THREAD)?])?]),
        (libc::SYS_prctl, vec![when(vec![equal(0, libc::PR_SET_NAME)?])?]),
        // `abort`, and the watcher that ends this process.
        (libc::SYS_kill, vec![to_itself.clone()]),
        (libc::SYS_tgkill, vec![to_itself]),
        // Its own processor time, as every picture needs it. Root might raise any other limit.
        (libc::SYS_prlimit64, vec![when(vec![equal(0, 0)?, equal(1, RLIMIT_CPU)?])?]),
        (libc::SYS_fcntl, fcntl.into_iter().collect::<Result<_>>()?),
    ];
    let harmless = HARMLESS.iter().map(|&call| (call, Vec::new()));
    program(harmless.chain(conditional), SeccompAction::KillProcess, SeccompAction::Allow)
}

/// Where all of these hold.
fn when(conditions: Vec<SeccompCondition>) -> Result<SeccompRule> {
    Ok(SeccompRule::new(conditions)?)
}

/// An argument has this value.
fn equal(argument: u8, value: c_int) -> Result<SeccompCondition> {
    condition(argument, SeccompCmpOp::Eq, value)
}

/// These bits of an argument have this value.
fn masked(argument: u8, bits: c_int, value: c_int) -> Result<SeccompCondition> {
    condition(argument, SeccompCmpOp::MaskedEq(bits.unsigned_abs().into()), value)
}

/// All arguments that are looked at are numbers of 32 bits.
fn condition(argument: u8, operator: SeccompCmpOp, value: c_int) -> Result<SeccompCondition> {
    let (length, value) = (SeccompCmpArgLen::Dword, value.unsigned_abs().into());
    Ok(SeccompCondition::new(argument, length, operator, value)?)
}

/// A filter for this machine. A call without rules matches whatever its arguments are.
fn program(
    calls: impl IntoIterator<Item = (c_long, Vec<SeccompRule>)>,
    otherwise: SeccompAction,
    matching: SeccompAction,
) -> Result<BpfProgram> {
    let calls: BTreeMap<_, _> = calls.into_iter().collect();
    let filter = SeccompFilter::new(calls, otherwise, matching, ARCH.try_into()?)?;
    Ok(filter.try_into()?)
}
