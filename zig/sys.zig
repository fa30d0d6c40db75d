//! The few system calls of the guard, with their results as Zig wants them.
const std = @import("std");
const linux = std.os.linux;

pub const fd_t = linux.fd_t;
pub const pid_t = linux.pid_t;

/// The value of a call, or null with the error left to the caller to ignore or to name by errnoOf.
pub fn value(rc: usize) ?usize {
    return if (linux.errno(rc) == .SUCCESS) rc else null;
}

pub fn errorName(rc: usize) []const u8 {
    return std.enums.tagName(linux.E, linux.errno(rc)) orelse "unknown error";
}

pub fn close(fd: fd_t) void {
    _ = linux.close(fd); // nothing can be done about an error, and the descriptor is gone either way
}

pub fn kill(pid: pid_t, signal: linux.SIG) void {
    std.debug.assert(pid > 1);
    _ = linux.kill(pid, signal); // ESRCH: it has gone by itself; EPERM: it has become somebody else
}

pub fn sleepNs(ns: u64) void {
    const pause: linux.timespec = .{
        .sec = @intCast(@divFloor(ns, std.time.ns_per_s)),
        .nsec = @intCast(ns % std.time.ns_per_s),
    };
    _ = linux.nanosleep(&pause, null);
}

pub fn setName(name: [:0]const u8) void {
    std.debug.assert(name.len <= 15);
    _ = linux.prctl(@backingInt(linux.PR.SET_NAME), @intFromPtr(name.ptr), 0, 0, 0);
}

pub fn setSubreaper(on: bool) void {
    _ = linux.prctl(@backingInt(linux.PR.SET_CHILD_SUBREAPER), @intFromBool(on), 0, 0, 0);
}

/// One line on stderr. It may be closed or a terminal that has gone: then nobody wants to read it.
pub fn say(comptime format: []const u8, arguments: anytype) void {
    var buffer: [512]u8 = undefined;
    const whole = "orun-guard: " ++ format ++ "\n";
    const line = std.fmt.bufPrint(&buffer, whole, arguments) catch "orun-guard: (a line too long to print)\n";
    _ = linux.write(2, line.ptr, line.len);
}

/// `read` until `buffer` is full or the file ends; what was read.
pub fn readFile(path: [*:0]const u8, buffer: []u8) ?[]u8 {
    const opened = value(linux.open(path, .{ .CLOEXEC = true }, 0)) orelse return null;
    const fd: fd_t = @intCast(opened);
    defer close(fd);
    var size: usize = 0;
    while (size < buffer.len) {
        const got = value(linux.read(fd, buffer[size..].ptr, buffer.len - size)) orelse break;
        if (got == 0) break;
        size += got;
    }
    return buffer[0..size];
}
