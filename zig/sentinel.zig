//! The sentinel: a second process of the guard's program that outlives it. It sleeps until the guard
//! is gone without having said good-bye, and then ends whatever of the tree has not ended by itself.
//!
//! It is nobody's child that the tree could find or kill by mistake: forked twice, in a session of its
//! own, holding no descriptor and no folder of its starter.
const std = @import("std");
const linux = std.os.linux;
const sys = @import("sys.zig");
const tree = @import("tree.zig");

/// The runtime notices the guard's death as well, and ends its tree in order; it gets this long.
const grace_ns = 10 * std.time.ns_per_ms;
const kill_ns_max = 30 * std.time.ns_per_s;
/// The guard's good-bye.
pub const farewell: u8 = 'g';

pub const Sentinel = struct {
    pid: sys.pid_t,
    /// Readable when it has ended.
    pidfd: sys.fd_t,
    /// Takes the farewell.
    link: sys.fd_t,

    pub fn dismiss(sentinel: *const Sentinel) void {
        const byte = [1]u8{farewell};
        _ = linux.sendto(sentinel.link, &byte, 1, linux.MSG.NOSIGNAL, null, 0);
    }

    pub fn forget(sentinel: *const Sentinel) void {
        sys.close(sentinel.pidfd);
        sys.close(sentinel.link);
    }
};

/// Start one. `argv` is the guard's own; the sentinel writes its name over its copy of it. Null when the
/// system has no process or descriptor left. The caller sees to it that the caller is no subreaper.
pub fn start(token: *const tree.Token, argv: []const [*:0]const u8) ?Sentinel {
    const self = sys.value(linux.pidfd_open(linux.getpid(), 0)) orelse return null;
    const guard_fd: sys.fd_t = @intCast(self);
    defer sys.close(guard_fd);
    var link: [2]sys.fd_t = undefined;
    const kind = linux.SOCK.STREAM | linux.SOCK.CLOEXEC;
    _ = sys.value(linux.socketpair(linux.AF.UNIX, kind, 0, &link)) orelse return null;
    const middle = sys.value(linux.fork()) orelse {
        sys.close(link[0]);
        sys.close(link[1]);
        return null;
    };
    if (middle == 0) {
        const inner = sys.value(linux.fork()) orelse linux.exit_group(1);
        if (inner == 0) run(token, guard_fd, link[1], argv);
        const pid: sys.pid_t = @intCast(inner);
        _ = linux.write(link[1], std.mem.asBytes(&pid), @sizeOf(sys.pid_t));
        linux.exit_group(0);
    }
    sys.close(link[1]);
    var status: i32 = 0;
    _ = linux.wait4(@intCast(middle), &status, 0, null);
    var pid: sys.pid_t = 0;
    const got = linux.read(link[0], std.mem.asBytes(&pid), @sizeOf(sys.pid_t));
    const opened = if (got == @sizeOf(sys.pid_t)) sys.value(linux.pidfd_open(pid, 0)) else null;
    const pidfd = opened orelse {
        sys.close(link[0]);
        return null;
    };
    return .{ .pid = pid, .pidfd = @intCast(pidfd), .link = link[0] };
}

fn run(token: *const tree.Token, guard_fd: sys.fd_t, link: sys.fd_t, argv: []const [*:0]const u8) noreturn {
    detach(guard_fd, link);
    rename(argv);
    if (!guardFell(guard_fd, link)) linux.exit_group(0);
    sys.sleepNs(grace_ns);
    tree.killAllByToken(token, kill_ns_max);
    linux.exit_group(0);
}

fn detach(guard_fd: sys.fd_t, link: sys.fd_t) void {
    _ = linux.setsid();
    var all = linux.sigfillset();
    _ = linux.sigprocmask(linux.SIG.BLOCK, &all, null);
    _ = linux.chdir("/");
    if (sys.value(linux.open("/dev/null", .{ .ACCMODE = .RDWR }, 0))) |opened| {
        for (0..3) |fd| _ = linux.dup3(@intCast(opened), @intCast(fd), 0);
    }
    // Everything above the standard streams but the two descriptors that are in use.
    const low = @min(guard_fd, link);
    const high = @max(guard_fd, link);
    std.debug.assert(low > 2 and low != high);
    const here: linux.CLOSE_RANGE = .{ .UNSHARE = false, .CLOEXEC = false };
    if (low > 3) _ = linux.close_range(3, low - 1, here);
    if (high > low + 1) _ = linux.close_range(low + 1, high - 1, here);
    _ = linux.close_range(high + 1, std.math.maxInt(sys.fd_t), here);
}

/// What `ps` shows: otherwise two programs seem to run, and a kill by name would hit both.
fn rename(argv: []const [*:0]const u8) void {
    const name = "orun-sentinel";
    sys.setName(name);
    if (argv.len == 0) return;
    const first: [*]u8 = @constCast(argv[0]);
    const last = argv[argv.len - 1];
    const size = @intFromPtr(last) + std.mem.len(last) - @intFromPtr(first);
    @memset(first[0..size], 0);
    const shown = @min(size, name.len);
    @memcpy(first[0..shown], name[0..shown]);
}

/// Sleep until the guard has ended. False: it said good-bye.
fn guardFell(guard_fd: sys.fd_t, link: sys.fd_t) bool {
    var polled = [_]linux.pollfd{
        .{ .fd = guard_fd, .events = linux.POLL.IN, .revents = 0 },
        .{ .fd = link, .events = linux.POLL.IN, .revents = 0 },
    };
    while (true) {
        _ = sys.value(linux.ppoll(&polled, polled.len, null, null)) orelse continue;
        // The farewell counts even when the guard has ended since.
        var byte: [1]u8 = .{0};
        const got = sys.value(linux.recvfrom(link, &byte, 1, linux.MSG.DONTWAIT, null, null)) orelse 0;
        if (got == 1 and byte[0] == farewell) return false;
        if (polled[0].revents != 0) return true;
        if (polled[1].revents != 0) polled[1].fd = -1; // closed: only the guard's end counts now
    }
}
