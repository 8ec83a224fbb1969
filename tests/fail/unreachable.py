# SPDX-License-Identifier: Apache-2.0
"""Calls in the code that the life of failcalls.py never makes, and why that is."""
import re

# (programs, call and place, why)
ALLOWED = (
    ("spillwayd", r"daemon/privileges\.c:| startup_limits$",
     "started as root, it becomes somebody else: system/test_sandbox"),
    ("spillwayd spillway-gpu", r"io/sandbox\.c:|io/gpu/main\.c:\d+ say_call|^write at the end of say_call",
     "there is no filter here, as its lists do not know what makes calls fail: unit/test_sandbox, system/test_sandbox"),
    ("spillwayd", r"io/device\.c:\d+ (?:allocate|device_create|device_fill|write_all|identify_block|device_size_now|read_rotational|open_direct)"
                  r"|io/superblock\.c:\d+ (?:store_format_write|super_read_copy)",
     "the device is a file, and is there, whole: unit/test_device, unit/test_store_format"),
    ("spillwayd", r" (?:store_copies_read|super_compare|super_repair|header_repair)$", "of spillctl fsck: system/test_fsck"),
    ("spillwayd fail_workload", r" user_dir_is_private$", "a user's own daemon, without XDG_RUNTIME_DIR: python/test_first_use"),
    ("fail_workload", r" (?:spw_workers_new|cpus_count)$", "of spw_adam(): unit/test_adam"),
    ("spillwayd", r" (?:check_config|config_path_of|same_device|system_id_find|control_find_admin_group|is_journal)$",
     "of another configuration, or of --check-config: unit/test_config"),
    ("spillwayd", r"io/inject\.c:|daemon/admin_inject\.c:", "faults that an administrator orders: unit/test_inject"),
    ("spillwayd", r"daemon/fdstore\.c:", "descriptors that a service manager keeps, or that come with the wrong name: "
                                         "system/test_hot_restart, system/test_systemd"),
    ("spillwayd", r" (?:free_huge_bytes_patiently|sample_node|threads_start|memory_nodes_read)$",
     "of a machine with huge pages set aside, or with several nodes"),
    ("spillwayd", r"daemon/session_ring\.c:\d+ session_unanswered|daemon/gpu_talk\.c:\d+ (?:gpu_send_later|gpu_flush|out_free)"
                  r"|client/lib/ring_renew\.c:",
     "a peer that has not read yet, or calls that a restart finds unanswered: system/test_hot_restart, unit/test_gpu_bad_helper"),
    ("spillwayd", r"io/cuda_driver\.c:| tiering_check$", "of the helper, and of tests: linked, and never called by the daemon"),
    ("spillwayd", r"io/memory\.c:\d+ memory_map_zeros$", "a chunk whose memory is gone under the daemon: unit/test_memory"),
    ("spillwayd", r"^memfd_create io/memory\.c:", "a kernel that does not know MFD_NOEXEC_SEAL"),
    ("spillwayd", r"daemon/gpu_launcher\.c:\d+ (?:helper_prepare|become_helper|helper_start)$",
     "several GPUs, descriptors that lie where a helper's go, and a program that is not there: unit/test_gpu_launcher"),
    ("spillwayd", r" access_pidfd$", "Linux before 6.5"),
    ("spillwayd", r" spare_open open$", "a spare descriptor that somebody else took meanwhile"),
    ("fail_workload", r"^eventfd_write |^shutdown ", "wakes who sleeps just then, and ends what the daemon has ended: by chance"),
    ("spillwayd", r"^json_object_new_string .* json_add_text$", "names of a configuration that is refused, or waits: unit/test_json"),
    ("spillwayd", r"daemon/session_kept\.c:\d+ helper_end\b", "a helper that outlives its daemon: system/test_gpu_restart"),
    ("spillway-gpu", r"^dup2 io/gpu/main\.c:", "without a standard error"),
    ("fail_workload", r" batch_fill_large$", "an object of more pieces than a batch has views for"),
    ("spillwayd spillway-gpu fail_workload", r"^(?:nanosleep|usleep) ", "a moment's rest while somebody else is at it: seldom"),
    ("spillway-gpu", r"io/gpu/visible\.c:", "a helper of one of several GPUs: system/test_gpu_devices"),
    ("fail_workload", r" client_fork_mark$", "where there is no page that a fork clears"),
    ("fail_workload", r"client/lib/map\.c:\d+ (?:client_map_replace|map_blank)|client/lib/ring_renew\.c:",
     "a restart that loses memory, or finds calls unanswered: system/test_hot_restart"),
    ("spillwayd spillway-gpu fail_workload", r"^(?:close|munmap|kill|waitpid|io_uring_queue_exit) ",
     "gives back what there is no use for, after another call that failed: its own failure is looked at by nobody"),
)


def is_allowed(program, text):
    """The reason, or None."""
    for programs, pattern, reason in ALLOWED:
        if program in programs.split() and re.search(pattern, text):
            return reason
    return None
