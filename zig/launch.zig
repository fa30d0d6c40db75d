//! Starts the runtime: its environment, its signals, its process group, its end of the heartbeat.
const std = @import("std");
const assert = std.debug.assert;
const linux = std.os.linux;
const sys = @import("sys.zig");
const tree = @import("tree.zig");

const environ_count_max = 8192;
const path_size_max = 4096;
/// Runtimes that run below each other pass their tokens on; deeper than this the outermost are dropped.
const outer_size_max = 8 * (tree.token_size + 1);

pub const Launch = struct {
    argv: []const [*:0]const u8,
    environ: []const ?[*:0]const u8,
    token: *const tree.Token,
    guard_pid: sys.pid_t,
    /// How often it was started before.
    restarts: u64,
    /// What was blocked when the guard was started.
    blocked: *const linux.sigset_t,
};

pub const Runtime = struct {
    pid: sys.pid_t,
    /// One byte a beat comes out of it.
    beats: sys.fd_t,
};

/// Null when the system has no process or descriptor left.
pub fn start(launch: *const Launch) ?Runtime {
    assert(launch.argv.len > 0);
    var pair: [2]sys.fd_t = undefined;
    const kind = linux.SOCK.STREAM | linux.SOCK.CLOEXEC | linux.SOCK.NONBLOCK;
    _ = sys.value(linux.socketpair(linux.AF.UNIX, kind, 0, &pair)) orelse return null;
    const forked = sys.value(linux.fork()) orelse {
        sys.close(pair[0]);
        sys.close(pair[1]);
        return null;
    };
    if (forked == 0) {
        _ = linux.setpgid(0, 0);
        execute(launch, pair[1]);
    }
    const pid: sys.pid_t = @intCast(forked);
    // On both sides, so that it holds whoever comes first; EACCES: the child has come first.
    _ = linux.setpgid(pid, pid);
    sys.close(pair[1]);
    return .{ .pid = pid, .beats = pair[0] };
}

var environ_new: [environ_count_max + 1]?[*:0]const u8 = undefined;
var argv_new: [environ_count_max + 1]?[*:0]const u8 = undefined;
var tree_text: [64 + outer_size_max + tree.token_size]u8 = undefined;
var number_texts: [3][64]u8 = undefined;

fn execute(launch: *const Launch, beats: sys.fd_t) noreturn {
    _ = linux.fcntl(beats, linux.F.SETFD, 0);
    const default: linux.Sigaction = .{
        .handler = .{ .handler = linux.SIG.DFL },
        .mask = linux.sigemptyset(),
        .flags = 0,
    };
    // SIGTTOU and SIGTTIN stay ignored: the runtime is not in the terminal's foreground group, and must
    // be able to write there, and not be stopped when something below it reads.
    _ = linux.sigaction(.PIPE, &default, null);
    _ = linux.sigprocmask(linux.SIG.SETMASK, launch.blocked, null);
    const environ = makeEnviron(launch, beats) orelse fail(launch, "the environment is too large");
    if (launch.argv.len > environ_count_max) fail(launch, "too many arguments");
    for (launch.argv, 0..) |argument, i| argv_new[i] = argument;
    argv_new[launch.argv.len] = null;
    const argv: [*:null]const ?[*:0]const u8 = @ptrCast(&argv_new);
    const name = std.mem.span(launch.argv[0]);
    if (std.mem.findScalar(u8, name, '/') != null) {
        fail(launch, sys.errorName(linux.execve(launch.argv[0], argv, environ)));
    }
    fail(launch, searchPath(name, argv, environ, launch.environ));
}

fn fail(launch: *const Launch, why: []const u8) noreturn {
    sys.say("cannot start {s}: {s}", .{ launch.argv[0], why });
    linux.exit_group(127);
}

/// Returns only when nothing could be executed: why.
fn searchPath(
    name: []const u8,
    argv: [*:null]const ?[*:0]const u8,
    environ: [*:null]const ?[*:0]const u8,
    given: []const ?[*:0]const u8,
) []const u8 {
    var folders = std.mem.splitScalar(u8, lookUp(given, "PATH=") orelse "/usr/bin:/bin", ':');
    var why: []const u8 = "NOENT";
    while (folders.next()) |folder| {
        var path: [path_size_max]u8 = undefined;
        const full = std.fmt.bufPrintSentinel(&path, "{s}/{s}", .{ folder, name }, 0) catch continue;
        const rc = linux.execve(full, argv, environ);
        if (linux.errno(rc) != .NOENT and linux.errno(rc) != .NOTDIR) why = sys.errorName(rc);
    }
    return why;
}

/// The value of a variable; `name` ends in the equals sign.
fn lookUp(environ: []const ?[*:0]const u8, name: []const u8) ?[]const u8 {
    assert(name[name.len - 1] == '=');
    for (environ) |entry| {
        const text = std.mem.span(entry.?);
        if (std.mem.startsWith(u8, text, name)) return text[name.len..];
    }
    return null;
}

/// What was given, with our four variables in place of any of these names. Null: too many.
fn makeEnviron(launch: *const Launch, beats: sys.fd_t) ?[*:null]const ?[*:0]const u8 {
    const names = [_][]const u8{ "ORUN_TREE=", "ORUN_GUARD_PID=", "ORUN_GUARD_FD=", "ORUN_RESTARTS=" };
    const numbers = [_]u64{ @intCast(launch.guard_pid), @intCast(beats), launch.restarts };
    // Inside another orun's tree the token is added to the outer one, so that both find their processes.
    const outer = lookUp(launch.environ, "ORUN_TREE=") orelse "";
    const kept = if (outer.len <= outer_size_max) outer else "";
    const dot = if (kept.len > 0) "." else "";
    const parts = .{ kept, dot, launch.token };
    environ_new[0] = std.fmt.bufPrintSentinel(&tree_text, "ORUN_TREE={s}{s}{s}", parts, 0) catch return null;
    for (numbers, names[1..], &number_texts, environ_new[1..4]) |number, name, *text, *slot| {
        slot.* = std.fmt.bufPrintSentinel(text, "{s}{d}", .{ name, number }, 0) catch return null;
    }
    var count: usize = names.len;
    for (launch.environ) |entry| {
        const text = std.mem.span(entry.?);
        const ours = for (names) |name| {
            if (std.mem.startsWith(u8, text, name)) break true;
        } else false;
        if (ours) continue;
        if (count == environ_count_max) return null;
        environ_new[count] = entry;
        count += 1;
    }
    environ_new[count] = null;
    return @ptrCast(&environ_new);
}

test "the environment names the tree once, after the outer one" {
    const given = [_]?[*:0]const u8{ "A=1", "ORUN_TREE=outer", "ORUN_RESTARTS=9", "B=2" };
    const token: tree.Token = comptime @splat('x');
    const blocked = linux.sigemptyset();
    const launch: Launch = .{
        .argv = &.{"x"},
        .environ = &given,
        .token = &token,
        .guard_pid = 42,
        .restarts = 2,
        .blocked = &blocked,
    };
    const environ = std.mem.span(makeEnviron(&launch, 7).?);
    const expected = [_][]const u8{
        "ORUN_TREE=outer." ++ &token,
        "ORUN_GUARD_PID=42",
        "ORUN_GUARD_FD=7",
        "ORUN_RESTARTS=2",
        "A=1",
        "B=2",
    };
    try std.testing.expectEqual(expected.len, environ.len);
    for (expected, environ) |wanted, entry| try std.testing.expectEqualStrings(wanted, std.mem.span(entry.?));
}
