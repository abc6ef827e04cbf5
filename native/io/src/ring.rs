//! The ring of a queue: made with everything the engine relies on, or a fault that says what the kernel lacks and what to do about it.

use crate::fault::Fault;
use io_uring::{IoUring, Probe, opcode};

const SQ_ENTRIES: u32 = 2048;
const CQ_ENTRIES: u32 = 16384;

pub fn create() -> Result<IoUring, Fault> {
    let ring = IoUring::builder()
        .setup_single_issuer()
        .setup_defer_taskrun()
        .setup_coop_taskrun()
        .setup_taskrun_flag()
        .setup_submit_all()
        .setup_clamp()
        .setup_cqsize(CQ_ENTRIES)
        .dontfork()
        .build(SQ_ENTRIES)
        .map_err(|error| missing(error.raw_os_error().unwrap_or(libc::EIO), "rings with SINGLE_ISSUER and DEFER_TASKRUN"))?;
    let params = ring.params();
    if !(params.is_feature_nodrop() && params.is_feature_ext_arg() && params.is_feature_submit_stable() && params.is_feature_fast_poll()) {
        return Err(missing(libc::EINVAL, "the features NODROP, EXT_ARG, SUBMIT_STABLE and FAST_POLL"));
    }
    let mut probe = Probe::new();
    ring.submitter().register_probe(&mut probe).map_err(|error| missing(error.raw_os_error().unwrap_or(libc::EIO), "its probe"))?;
    let needed = [
        ("ACCEPT", opcode::Accept::CODE),
        ("CONNECT", opcode::Connect::CODE),
        ("RECV", opcode::Recv::CODE),
        ("SEND", opcode::Send::CODE),
        ("SENDMSG", opcode::SendMsg::CODE),
        ("POLL_ADD", opcode::PollAdd::CODE),
        ("READ", opcode::Read::CODE),
        ("WRITE", opcode::Write::CODE),
        ("WRITEV", opcode::Writev::CODE),
        ("FSYNC", opcode::Fsync::CODE),
        ("FALLOCATE", opcode::Fallocate::CODE),
        ("ASYNC_CANCEL", opcode::AsyncCancel2::CODE),
    ];
    for (name, code) in needed {
        if !probe.is_supported(code) {
            return Err(missing(libc::EINVAL, &format!("the operation {name}")));
        }
    }
    Ok(ring)
}

/// Says what the kernel lacks and what to do about it.
pub fn missing(errno: i32, feature: &str) -> Fault {
    let release = kernel_release();
    match errno {
        libc::EPERM | libc::EACCES => Fault::new(
            "EPERM",
            "io_uring is switched off for this process: set `sysctl kernel.io_uring_disabled=0`, and in a container allow the io_uring system calls in its seccomp profile",
        ),
        libc::ENOSYS => Fault::new(
            "ENOSYS",
            format!(
                "this kernel ({release}) has no io_uring, or a container's seccomp profile hides it: XSAN needs Linux 6.1 or later built with CONFIG_IO_URING, and the io_uring system calls allowed"
            ),
        ),
        libc::EINVAL | libc::EOPNOTSUPP => Fault::new(
            "EOPNOTSUPP",
            format!(
                "the io_uring of this kernel ({release}) lacks {feature}: XSAN needs Linux 6.1 or later; install a newer kernel (Debian 12, Ubuntu 24.04 and RHEL 10 have one)"
            ),
        ),
        libc::ENOMEM => Fault::new(
            "ENOMEM",
            "no memory for the io_uring rings: free some memory or raise the limit of locked memory (`ulimit -l`, LimitMEMLOCK= in systemd)",
        ),
        libc::EMFILE | libc::ENFILE => {
            Fault::os(errno, "no file descriptor left for io_uring: raise `ulimit -n` (LimitNOFILE= in systemd)")
        }
        _ => Fault::os(errno, format!("io_uring: {feature}")),
    }
}

fn kernel_release() -> String {
    std::fs::read_to_string("/proc/sys/kernel/osrelease").map_or_else(|_| "unknown".to_owned(), |s| s.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_lack_of_the_kernel_is_named_with_its_remedy() {
        for (errno, code, texts) in [
            (libc::EPERM, "EPERM", ["io_uring_disabled=0", "seccomp"]),
            (libc::ENOSYS, "ENOSYS", ["6.1", "CONFIG_IO_URING"]),
            (libc::EINVAL, "EOPNOTSUPP", ["6.1", "lacks rings"]),
            (libc::ENOMEM, "ENOMEM", ["LimitMEMLOCK", "ulimit -l"]),
            (libc::EMFILE, "EMFILE", ["LimitNOFILE", "ulimit -n"]),
        ] {
            let fault = missing(errno, "rings");
            assert_eq!(fault.code, code);
            for text in texts {
                assert!(fault.message.contains(text), "{}", fault.message);
            }
        }
    }
}
