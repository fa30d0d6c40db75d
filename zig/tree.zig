//! Ends processes: all children of the guard, or all processes on the machine that carry the tree's
//! token in their environment. The first is exact and fast, and needs the guard; the second is for
//! when the guard is gone, and reaches processes in sessions of their own and with other parents.
const std = @import("std");
const assert = std.debug.assert;
const linux = std.os.linux;
const clock = @import("clock.zig");
const sys = @import("sys.zig");
const pid_t = sys.pid_t;

pub const token_size = 32;
pub const Token = [token_size]u8;

/// An environment longer than this is searched no further.
const environ_size_max = 1 << 20;
const sweep_ns_max = 10 * std.time.ns_per_s;

/// Children that a sweep leaves alone.
pub const Known = struct {
    pids: [64]pid_t = @splat(0),
    count: usize = 0,

    /// What does not fit is not known: there are 64 places, and none is ever needed in practice.
    pub fn add(known: *Known, pid: pid_t) void {
        assert(pid > 0);
        if (known.count == known.pids.len) return;
        known.pids[known.count] = pid;
        known.count += 1;
    }

    pub fn has(known: *const Known, pid: pid_t) bool {
        return std.mem.findScalar(pid_t, known.pids[0..known.count], pid) != null;
    }
};

/// The children of this single-threaded process, as far as they fit; null when the kernel does not tell.
pub fn children(buffer: *[4096]u8) ?std.mem.TokenIterator(u8, .scalar) {
    const text = sys.readFile("/proc/thread-self/children", buffer) orelse return null;
    const end = if (text.len < buffer.len) text.len else std.mem.findScalarLast(u8, text, ' ') orelse 0;
    return std.mem.tokenizeScalar(u8, text[0..end], ' ');
}

/// Kill and reap every child that is not known, and the orphans that come to us by that, until there
/// is none. False when some would not die in time.
pub fn sweep(known: *const Known, token: *const Token) bool {
    const end_ns = clock.monotonicNs() + sweep_ns_max;
    while (true) {
        if (!reap()) return true;
        var buffer: [4096]u8 = undefined;
        var killed: usize = 0;
        if (children(&buffer)) |listed| {
            var pids = listed;
            while (pids.next()) |text| {
                const pid = std.fmt.parseInt(pid_t, text, 10) catch continue;
                if (known.has(pid)) continue;
                sys.kill(pid, .KILL);
                killed += 1;
            }
        } else {
            killed = killByToken(token);
        }
        if (killed == 0) return true;
        if (clock.monotonicNs() > end_ns) return false;
        sys.sleepNs(100 * std.time.ns_per_us);
    }
}

/// Reap what has ended. False: there are no children at all.
fn reap() bool {
    var status: i32 = 0;
    while (true) {
        const pid = sys.value(linux.wait4(-1, &status, linux.W.NOHANG, null)) orelse return false;
        if (pid == 0) return true;
    }
}

/// One pass over all processes: kill those that carry the token. Returns how many there were.
pub fn killByToken(token: *const Token) usize {
    const opened = sys.value(linux.open("/proc", .{ .DIRECTORY = true, .CLOEXEC = true }, 0)) orelse return 0;
    const fd: sys.fd_t = @intCast(opened);
    defer sys.close(fd);
    var count: usize = 0;
    var entries: [8192]u8 align(@alignOf(linux.dirent64)) = undefined;
    while (sys.value(linux.getdents64(fd, &entries, entries.len))) |size| {
        if (size == 0) break;
        var at: usize = 0;
        while (at < size) {
            const entry: *align(1) linux.dirent64 = @ptrCast(&entries[at]);
            assert(entry.reclen > 0);
            const name = std.mem.span(@as([*:0]u8, @ptrCast(&entry.name)));
            at += entry.reclen;
            const pid = std.fmt.parseInt(pid_t, name, 10) catch continue;
            if (pid > 1 and killIfCarries(pid, token)) count += 1;
        }
    }
    return count;
}

fn killIfCarries(pid: pid_t, token: *const Token) bool {
    if (!carries(pid, token)) return false;
    // The descriptor names one process for ever. Looking again through it makes sure that the process
    // which gets the signal is the one that was seen, even if numbers are used again quickly.
    const opened = sys.value(linux.pidfd_open(pid, 0)) orelse return false;
    const fd: sys.fd_t = @intCast(opened);
    defer sys.close(fd);
    if (!carries(pid, token)) return false;
    _ = linux.pidfd_send_signal(fd, .KILL, null, 0);
    return true;
}

/// Does this process have the token in its environment? A zombie has none.
fn carries(pid: pid_t, token: *const Token) bool {
    var path: [32]u8 = undefined;
    // 32 bytes hold any pid.
    const name = std.fmt.bufPrintSentinel(&path, "/proc/{d}/environ", .{pid}, 0) catch unreachable; // see above
    const opened = sys.value(linux.open(name, .{ .CLOEXEC = true }, 0)) orelse return false;
    const fd: sys.fd_t = @intCast(opened);
    defer sys.close(fd);
    var buffer: [8192]u8 = undefined;
    var kept: usize = 0; // the end of the last part, in case the token is cut in two
    var total: usize = 0;
    while (total < environ_size_max) {
        const got = sys.value(linux.read(fd, buffer[kept..].ptr, buffer.len - kept)) orelse return false;
        if (got == 0) return false;
        const seen = buffer[0 .. kept + got];
        if (std.mem.find(u8, seen, token) != null) return true;
        kept = @min(seen.len, token_size - 1);
        std.mem.copyForwards(u8, buffer[0..kept], seen[seen.len - kept ..]);
        total += got;
    }
    return false;
}

/// Kill by token until nothing carries it any more. Three clean passes, because a process that is just
/// being executed has no environment for a moment.
pub fn killAllByToken(token: *const Token, ns_max: u64) void {
    const end_ns = clock.monotonicNs() + ns_max;
    var clean: u32 = 0;
    while (clean < 3 and clock.monotonicNs() < end_ns) {
        clean = if (killByToken(token) == 0) clean + 1 else 0;
        sys.sleepNs(2 * std.time.ns_per_ms);
    }
}
