//! The two functions that the compiler calls by itself, for a program without libc. Zig's own versions
//! come with its whole run-time library, which takes 3 s to build the first time.
const builtin = @import("builtin");

comptime {
    if (!builtin.is_test) {
        @export(&memcpy, .{ .name = "memcpy" });
        @export(&memset, .{ .name = "memset" });
    }
}

fn memcpy(to: [*]u8, from: [*]const u8, size: usize) callconv(.c) [*]u8 {
    if (builtin.cpu.arch == .x86_64) {
        asm volatile ("rep movsb"
            :
            : [to] "{rdi}" (to),
              [from] "{rsi}" (from),
              [size] "{rcx}" (size),
            : .{ .rdi = true, .rsi = true, .rcx = true, .memory = true });
        return to;
    }
    for (0..size) |i| @as(*volatile u8, &to[i]).* = from[i]; // volatile, or the loop becomes a call of itself
    return to;
}

fn memset(to: [*]u8, byte: u8, size: usize) callconv(.c) [*]u8 {
    if (builtin.cpu.arch == .x86_64) {
        asm volatile ("rep stosb"
            :
            : [to] "{rdi}" (to),
              [byte] "{al}" (byte),
              [size] "{rcx}" (size),
            : .{ .rdi = true, .rcx = true, .memory = true });
        return to;
    }
    for (0..size) |i| @as(*volatile u8, &to[i]).* = byte;
    return to;
}
