//! orun-guard: parent and subreaper of the whole tree. It starts the runtime, passes signals on,
//! starts it again when it dies by a signal or falls silent, and takes everything below it down when
//! it ends. Static, one thread, no allocation: nothing in it can fail that is not written here.
//!
//! Two rules keep the tree free of orphans. Below the guard every orphan becomes the guard's child, and
//! a child that the guard does not know is killed. And when the guard itself is killed, its sentinel
//! (sentinel.zig) kills whatever carries the tree's token.
const std = @import("std");
const assert = std.debug.assert;
const linux = std.os.linux;
const clock = @import("clock.zig");
const launch = @import("launch.zig");
const options_file = @import("options.zig");
const sentinel_file = @import("sentinel.zig");
const sys = @import("sys.zig");
const tree = @import("tree.zig");

pub const panic = std.debug.FullPanic(@import("panic.zig").fail);
pub const std_options: std.Options = .{ .enable_segfault_handler = false, .signal_stack_size = null };
pub const std_options_debug_threaded_io: ?*std.Io.Threaded = null;

comptime {
    _ = @import("mem.zig");
}

const exit_usage = 2;
const exit_unavailable = 13;
const exit_intensity = 14;
const SIG = linux.SIG;

/// Signals that are passed on to the runtime. The first two always mean that it shall end.
const passed = [_]SIG{ .INT, .TERM, .QUIT, .HUP, .USR1, .WINCH };
const ending = passed[0..2];

/// The guard's own pause counts for nothing when it was longer than planned by this much: the machine
/// was suspended or the guard was stopped, and the runtime may have been too.
const overslept_ns = std.time.ns_per_s;
const sentinel_pause_ns = std.time.ns_per_s;

const Ended = union(enum) {
    code: u8,
    signal: SIG,
    silent,
};

const Guard = struct {
    options: options_file.Options,
    argv: []const [*:0]const u8,
    launch: launch.Launch,
    token: tree.Token,
    signal_fd: sys.fd_t,
    /// Children that were there before us (we may have been executed in the place of a shell).
    known: tree.Known,
    runtime: ?launch.Runtime = null,
    /// When the last beat came; 0: none yet, and so no rule about silence.
    beat_ns: u64 = 0,
    /// The runtime's end of the heartbeat is open.
    beating: bool = false,
    sentinel: ?sentinel_file.Sentinel = null,
    sentinel_next_ns: u64 = 0,
    sentinel_starts: u64 = 0,
    /// The runtime may have died while the guard was no subreaper.
    leaked: bool = false,
    /// The end was asked for.
    stop: ?SIG = null,
    /// The last signal passed on: a runtime that dies by it has obeyed.
    last_passed: ?SIG = null,
    ended: ?Ended = null,
    deaths_ns: [options_file.restarts_max + 1]u64 = @splat(0),
    deaths: u64 = 0,

    fn run(guard: *Guard) u8 {
        while (true) {
            guard.ensureSentinel();
            const runtime = launch.start(&guard.launch) orelse {
                sys.say("cannot start the runtime: no process or descriptor left", .{});
                return guard.finish(1);
            };
            guard.runtime = runtime;
            guard.beat_ns = 0;
            guard.beating = true;
            guard.last_passed = null;
            guard.ended = null;
            const ended = guard.watch();
            guard.runtime = null;
            sys.close(runtime.beats);
            guard.sweep();
            guard.takeSignals(); // one may have come while we swept
            const code = guard.verdict(ended) orelse {
                guard.launch.restarts += 1;
                continue;
            };
            return guard.finish(code);
        }
    }

    fn finish(guard: *Guard, code: u8) u8 {
        if (guard.sentinel) |*sentinel| sentinel.dismiss();
        return code;
    }

    /// The exit code, or null: start it again.
    fn verdict(guard: *Guard, ended: Ended) ?u8 {
        const signal: SIG = switch (ended) {
            .code => |code| return code,
            .signal => |signal| signal,
            .silent => .KILL,
        };
        const obeyed = if (guard.last_passed) |last| ended == .signal and last == signal else false;
        if (guard.stop != null or obeyed) return 128 + @as(u8, @intCast(@backingInt(signal)));
        const now = clock.monotonicNs();
        const places = guard.deaths_ns.len;
        guard.deaths_ns[guard.deaths % places] = now;
        guard.deaths += 1;
        const options = &guard.options;
        var recent: u64 = 0;
        for (0..@min(guard.deaths, places)) |i| {
            const age = now - guard.deaths_ns[i];
            if (age <= options.period_ms * std.time.ns_per_ms) recent += 1;
        }
        var why: [64]u8 = undefined;
        const cause = describe(&why, ended, options.heartbeat_ms);
        if (recent > options.restarts) {
            const numbers = .{ recent, options.period_ms, cause };
            sys.say("the runtime died {d} times within {d} ms (the last time: {s}); giving up", numbers);
            return exit_intensity;
        }
        const numbers = .{ cause, recent, options.restarts, options.period_ms };
        sys.say("the runtime died: {s}; starting it again ({d} of {d} within {d} ms)", numbers);
        return null;
    }

    /// Until the runtime has ended.
    fn watch(guard: *Guard) Ended {
        var boot_offset = clock.boottimeNs() -% clock.monotonicNs();
        while (true) {
            const before = clock.monotonicNs();
            const wait_ns = guard.waitNs(before);
            guard.poll(wait_ns);
            const now = clock.monotonicNs();
            const offset = clock.boottimeNs() -% now;
            const suspended = offset > boot_offset +| overslept_ns;
            boot_offset = offset;
            if (guard.ended) |ended| return ended;
            if (suspended or now - before > (wait_ns orelse now - before) +| overslept_ns) {
                if (guard.beat_ns != 0) guard.beat_ns = now;
            }
            if (guard.silent(now)) return guard.killRuntime();
            guard.ensureSentinel();
            if (guard.ended) |ended| return ended;
        }
    }

    /// How long nothing needs to be done unless something happens; null: for ever.
    fn waitNs(guard: *const Guard, now: u64) ?u64 {
        var until: ?u64 = null;
        if (guard.beat_ns != 0) until = guard.beat_ns + guard.options.heartbeat_ms * std.time.ns_per_ms + 1;
        if (guard.sentinel == null) until = @min(until orelse guard.sentinel_next_ns, guard.sentinel_next_ns);
        return if (until) |at| at -| now else null;
    }

    fn silent(guard: *const Guard, now: u64) bool {
        if (guard.beat_ns == 0) return false;
        return now -| guard.beat_ns > guard.options.heartbeat_ms * std.time.ns_per_ms;
    }

    fn poll(guard: *Guard, wait_ns: ?u64) void {
        var polled = [_]linux.pollfd{
            .{ .fd = guard.signal_fd, .events = linux.POLL.IN, .revents = 0 },
            .{ .fd = if (guard.beating) guard.runtime.?.beats else -1, .events = linux.POLL.IN, .revents = 0 },
            .{ .fd = if (guard.sentinel) |s| s.pidfd else -1, .events = linux.POLL.IN, .revents = 0 },
        };
        var timeout: linux.timespec = undefined;
        if (wait_ns) |ns| timeout = .{
            .sec = @intCast(@divFloor(ns, std.time.ns_per_s)),
            .nsec = @intCast(ns % std.time.ns_per_s),
        };
        const pause = if (wait_ns == null) null else &timeout;
        _ = sys.value(linux.ppoll(&polled, polled.len, pause, null)) orelse return;
        if (polled[1].revents != 0) guard.takeBeats();
        if (polled[0].revents != 0) guard.takeSignals();
        if (polled[2].revents != 0) guard.loseSentinel();
    }

    fn takeBeats(guard: *Guard) void {
        var bytes: [256]u8 = undefined;
        const got = sys.value(linux.read(guard.runtime.?.beats, &bytes, bytes.len)) orelse return;
        if (got > 0) guard.beat_ns = clock.monotonicNs() else guard.beating = false;
    }

    fn takeSignals(guard: *Guard) void {
        while (true) {
            var info: linux.signalfd_siginfo = undefined;
            const bytes = std.mem.asBytes(&info);
            const got = sys.value(linux.read(guard.signal_fd, bytes, bytes.len)) orelse return;
            if (got != bytes.len) return;
            const signal: SIG = @fromBackingInt(info.signo);
            if (signal == .CHLD) {
                guard.reap();
                continue;
            }
            if (std.mem.findScalar(SIG, ending, signal) != null) guard.stop = signal;
            const runtime = guard.runtime orelse continue;
            if (guard.ended != null) continue;
            guard.last_passed = signal;
            sys.kill(runtime.pid, signal);
        }
    }

    fn reap(guard: *Guard) void {
        var status: i32 = 0;
        while (true) {
            const pid = sys.value(linux.wait4(-1, &status, linux.W.NOHANG, null)) orelse return;
            if (pid == 0) return;
            const runtime = guard.runtime orelse continue;
            if (pid != runtime.pid) continue;
            assert(guard.ended == null); // a process ends once
            const word: u32 = @bitCast(status);
            guard.ended = if (linux.W.IFEXITED(word))
                .{ .code = linux.W.EXITSTATUS(word) }
            else
                .{ .signal = linux.W.TERMSIG(word) };
        }
    }

    fn killRuntime(guard: *Guard) Ended {
        assert(guard.ended == null);
        const pid = guard.runtime.?.pid;
        sys.kill(pid, .KILL);
        var status: i32 = 0;
        _ = linux.wait4(pid, &status, 0, null); // our child, not yet reaped, and no signal interrupts us
        return .silent;
    }

    fn sweep(guard: *Guard) void {
        var known = guard.known;
        if (guard.sentinel) |sentinel| known.add(sentinel.pid); // it is our child if we are process 1
        if (!tree.sweep(&known, &guard.token)) sys.say("some processes cannot be killed", .{});
        if (guard.leaked) tree.killAllByToken(&guard.token, std.time.ns_per_s);
        guard.leaked = false;
    }

    fn ensureSentinel(guard: *Guard) void {
        if (guard.sentinel != null) return;
        const now = clock.monotonicNs();
        if (now < guard.sentinel_next_ns) return;
        // The first that is lost is replaced at once; one that is lost again and again, not more often.
        guard.sentinel_next_ns = if (guard.sentinel_starts > 0) now + sentinel_pause_ns else 0;
        guard.sentinel_starts += 1;
        // While we are no subreaper it goes to our parent's, out of reach of any kill of our tree.
        sys.setSubreaper(false);
        guard.sentinel = sentinel_file.start(&guard.token, guard.argv);
        sys.setSubreaper(true);
        if (guard.sentinel == null) sys.say("cannot start the sentinel; trying again", .{});
        // A runtime that died in between left its children to somebody else.
        guard.reap();
        if (guard.ended != null) guard.leaked = true;
    }

    fn loseSentinel(guard: *Guard) void {
        guard.sentinel.?.forget();
        guard.sentinel = null;
    }
};

fn describe(buffer: []u8, ended: Ended, heartbeat_ms: u64) []const u8 {
    return switch (ended) {
        .code => unreachable, // an exit code is never a reason to start again
        .signal => |signal| std.fmt.bufPrint(buffer, "killed by {s}{s}", .{
            if (std.enums.tagName(SIG, signal) == null) "a signal" else "SIG",
            std.enums.tagName(SIG, signal) orelse "",
        }) catch unreachable, // the longest name is short
        .silent => std.fmt.bufPrint(buffer, "silent for {d} ms", .{heartbeat_ms}) catch unreachable, // short
    };
}

/// Block what we listen to; a signal that our starter ignores (nohup, a background job) stays ignored.
fn listen(blocked: *linux.sigset_t) ?sys.fd_t {
    var heard = linux.sigemptyset();
    linux.sigaddset(&heard, .CHLD);
    for (passed) |signal| {
        var action: linux.Sigaction = undefined;
        _ = linux.sigaction(signal, null, &action);
        if (action.handler.handler != linux.SIG.IGN) linux.sigaddset(&heard, signal);
    }
    _ = linux.sigprocmask(linux.SIG.BLOCK, &heard, blocked);
    const ignore: linux.Sigaction = .{
        .handler = .{ .handler = linux.SIG.IGN },
        .mask = linux.sigemptyset(),
        .flags = 0,
    };
    for ([_]SIG{ .PIPE, .TTOU, .TTIN }) |signal| _ = linux.sigaction(signal, &ignore, null);
    const opened = linux.signalfd(-1, &heard, linux.SFD.CLOEXEC | linux.SFD.NONBLOCK);
    return @intCast(sys.value(opened) orelse return null);
}

/// The standard streams must be open, or what we open next would take their place.
fn openStandardStreams() bool {
    while (true) {
        const rc = linux.open("/dev/null", .{ .ACCMODE = .RDWR, .CLOEXEC = true }, 0);
        const opened = sys.value(rc) orelse return false;
        if (opened > 2) {
            sys.close(@intCast(opened));
            return true;
        }
        _ = linux.fcntl(@intCast(opened), linux.F.SETFD, 0);
    }
}

fn makeToken(token: *tree.Token) bool {
    var bytes: [tree.token_size / 2]u8 = undefined;
    const got = sys.value(linux.getrandom(&bytes, bytes.len, 0)) orelse return false;
    if (got != bytes.len) return false;
    token.* = std.fmt.bytesToHex(bytes, .lower);
    return true;
}

pub fn main(init: std.process.Init.Minimal) u8 {
    const argv = init.args.vector;
    const options = options_file.parse(argv) orelse {
        sys.say("usage: orun-guard [--heartbeat-ms N] [--restarts N] [--period-ms N] -- COMMAND ...", .{});
        return exit_usage;
    };
    if (!openStandardStreams()) return exit_unavailable;
    sys.setName("orun-guard");
    var blocked: linux.sigset_t = undefined;
    var guard: Guard = .{
        .options = options,
        .argv = argv,
        .launch = undefined,
        .token = undefined,
        .signal_fd = undefined,
        .known = .{},
    };
    var buffer: [4096]u8 = undefined;
    if (tree.children(&buffer)) |listed| {
        var pids = listed;
        while (pids.next()) |text| guard.known.add(std.fmt.parseInt(sys.pid_t, text, 10) catch continue);
    }
    guard.signal_fd = listen(&blocked) orelse return exit_unavailable;
    if (!makeToken(&guard.token)) return exit_unavailable;
    guard.launch = .{
        .argv = options.argv,
        .environ = init.environ.block.slice,
        .token = &guard.token,
        .guard_pid = linux.getpid(),
        .restarts = 0,
        .blocked = &blocked,
    };
    return guard.run();
}

test {
    _ = @import("options.zig");
    _ = @import("launch.zig");
}
