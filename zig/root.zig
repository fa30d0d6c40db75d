//! The engine as a shared library: exports every function of api.zig. No libc, no allocation, no
//! global state but the clock's; whatever lives longer than a call is memory that the caller gave.
const std = @import("std");
const api = @import("api.zig");

pub const panic = std.debug.FullPanic(@import("panic.zig").fail);

comptime {
    for (std.meta.declarations(api)) |name| {
        const value = &@field(api, name);
        if (@typeInfo(@TypeOf(value.*)) == .@"fn") @export(value, .{ .name = name });
    }
}

test {
    _ = @import("clock.zig");
    _ = @import("crc32c.zig");
    _ = @import("gen.zig");
    _ = @import("page.zig");
    _ = @import("record.zig");
    _ = @import("ring.zig");
}
