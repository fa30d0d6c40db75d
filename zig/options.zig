//! The guard's command line: `orun-guard [--heartbeat-ms N] [--restarts N] [--period-ms N] -- ARGV...`
const std = @import("std");

pub const restarts_max = 64;
const ms_max = 24 * 60 * 60 * 1000;

pub const Options = struct {
    /// A runtime that has begun to beat and is silent for so long is taken to be frozen.
    heartbeat_ms: u64 = 5000,
    /// Restarts allowed within the period; one more gives up.
    restarts: u64 = 3,
    period_ms: u64 = 5000,
    /// The runtime's program and arguments.
    argv: []const [*:0]const u8 = &.{},
};

/// Null: the arguments cannot be used.
pub fn parse(arguments: []const [*:0]const u8) ?Options {
    var options: Options = .{};
    var at: usize = 1;
    while (at < arguments.len) : (at += 2) {
        const name = std.mem.span(arguments[at]);
        if (std.mem.eql(u8, name, "--")) {
            if (at + 1 == arguments.len) return null;
            options.argv = arguments[at + 1 ..];
            return options;
        }
        if (at + 1 == arguments.len) return null;
        const number = std.fmt.parseInt(u64, std.mem.span(arguments[at + 1]), 10) catch return null;
        if (std.mem.eql(u8, name, "--heartbeat-ms")) {
            if (number == 0 or number > ms_max) return null;
            options.heartbeat_ms = number;
        } else if (std.mem.eql(u8, name, "--restarts")) {
            if (number > restarts_max) return null;
            options.restarts = number;
        } else if (std.mem.eql(u8, name, "--period-ms")) {
            if (number == 0 or number > ms_max) return null;
            options.period_ms = number;
        } else return null;
    }
    return null;
}

test "options before the two dashes, the runtime after them" {
    const good = [_][*:0]const u8{ "guard", "--restarts", "5", "--period-ms", "100", "--", "python", "--x" };
    const options = parse(&good).?;
    try std.testing.expectEqual(@as(u64, 5), options.restarts);
    try std.testing.expectEqual(@as(u64, 100), options.period_ms);
    try std.testing.expectEqual(@as(u64, 5000), options.heartbeat_ms);
    try std.testing.expectEqual(@as(usize, 2), options.argv.len);
}

test "what cannot be used is refused" {
    const cases = [_][]const [*:0]const u8{
        &.{"guard"},
        &.{ "guard", "--" },
        &.{ "guard", "--restarts" },
        &.{ "guard", "--restarts", "5" },
        &.{ "guard", "--restarts", "65", "--", "x" },
        &.{ "guard", "--heartbeat-ms", "0", "--", "x" },
        &.{ "guard", "--period-ms", "x", "--", "x" },
        &.{ "guard", "--unknown", "1", "--", "x" },
        &.{ "guard", "python" },
    };
    for (cases) |case| try std.testing.expectEqual(@as(?Options, null), parse(case));
}
