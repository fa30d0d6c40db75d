//! What happens when an assertion fails: one line on stderr and exit code 86, which supervisors know.
//! The standard handler prints a stack trace; it would add 220 KB and 3 s to every build.
const std = @import("std");
const linux = std.os.linux;

pub const exit_code = 86;

pub fn fail(message: []const u8, _: ?usize) noreturn {
    const lead = "orun engine: internal error: ";
    const parts = [_]std.posix.iovec_const{
        .{ .base = lead.ptr, .len = lead.len },
        .{ .base = message.ptr, .len = message.len },
        .{ .base = "\n", .len = 1 },
    };
    _ = linux.writev(2, &parts, parts.len);
    linux.exit_group(exit_code);
}
