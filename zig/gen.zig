//! The C declarations that Python loads the library by, made from the Zig types when the library is
//! compiled: the compiler is the only one who says what a struct looks like.
const std = @import("std");
const api = @import("api.zig");
const status = @import("status.zig");
const ring = @import("ring.zig");
const page = @import("page.zig");
const record = @import("record.zig");

/// All that the two sides must agree on.
pub const cdef: [:0]const u8 = std.fmt.comptimePrint("{s}{s}{s}", .{ constants, structs(), functions() });

/// Any change of a name, a type or a number in `cdef` gives another one.
pub const abi: u32 = fnv(cdef);

const constants = constant("ORUN_RING_HEADER_SIZE", ring.header_size) ++
    constant("ORUN_RING_CAPACITY_MIN", ring.capacity_min) ++
    constant("ORUN_RING_CAPACITY_MAX", ring.capacity_max) ++
    constant("ORUN_RING_VERSION", ring.version) ++
    constant("ORUN_PAGE_SIZE", @sizeOf(page.Page)) ++
    constant("ORUN_RECORD_HEADER_SIZE", record.header_size) ++
    statuses();

fn constant(name: []const u8, value: comptime_int) []const u8 {
    return std.fmt.comptimePrint("#define {s} {d}\n", .{ name, value });
}

fn statuses() []const u8 {
    const info = @typeInfo(status.Status).@"enum";
    var text: []const u8 = "";
    for (info.field_names, info.field_values) |name, value| {
        var upper: [name.len]u8 = undefined;
        text = text ++ constant("ORUN_" ++ std.ascii.upperString(&upper, name), value);
    }
    return text;
}

fn structs() []const u8 {
    @setEvalBranchQuota(100_000);
    var text: []const u8 = "";
    for (std.meta.declarations(api)) |name| {
        if (@TypeOf(@field(api, name)) != type) continue;
        const info = @typeInfo(@field(api, name)).@"struct";
        text = text ++ "typedef struct {\n";
        for (info.field_names, info.field_types) |field, T| {
            text = text ++ "    " ++ declare(T, field) ++ ";\n";
        }
        text = text ++ "} " ++ name ++ ";\n";
    }
    return text;
}

fn declare(comptime T: type, name: []const u8) []const u8 {
    return switch (@typeInfo(T)) {
        .array => |array| std.fmt.comptimePrint("{s} {s}[{d}]", .{ cType(array.child), name, array.len }),
        else => cType(T) ++ " " ++ name,
    };
}

fn functions() []const u8 {
    @setEvalBranchQuota(100_000);
    var text: []const u8 = "";
    for (std.meta.declarations(api)) |name| {
        const T = @TypeOf(@field(api, name));
        if (@typeInfo(T) != .@"fn") continue;
        const info = @typeInfo(T).@"fn";
        text = text ++ cType(info.return_type.?) ++ " " ++ name ++ "(";
        for (info.param_types, 0..) |Parameter, i| {
            text = text ++ (if (i > 0) ", " else "") ++ cType(Parameter.?);
        }
        text = text ++ (if (info.param_types.len == 0) "void" else "") ++ ");\n";
    }
    return text;
}

fn cType(comptime T: type) []const u8 {
    return switch (@typeInfo(T)) {
        .void => "void",
        .bool => "_Bool",
        .int => |int| switch (T) {
            usize => "size_t",
            c_int => "int",
            else => std.fmt.comptimePrint("{s}int{d}_t", .{
                if (int.signedness == .unsigned) "u" else "",
                int.bits,
            }),
        },
        .optional => |optional| cType(optional.child),
        .pointer => |pointer| (if (pointer.attrs.@"const") "const " else "") ++
            (if (pointer.sentinel_ptr != null) "char" else cType(pointer.child)) ++ " *",
        .@"struct" => baseName(@typeName(T)),
        else => @compileError("no C type for " ++ @typeName(T)),
    };
}

fn baseName(name: []const u8) []const u8 {
    const dot = std.mem.lastIndexOfScalar(u8, name, '.') orelse return name;
    return name[dot + 1 ..];
}

fn fnv(text: []const u8) u32 {
    @setEvalBranchQuota(100_000);
    var sum: u32 = 0x811c_9dc5;
    for (text) |byte| sum = (sum ^ byte) *% 0x0100_0193;
    return sum;
}

test "every exported function is declared" {
    try std.testing.expect(std.mem.indexOf(u8, cdef, "int64_t orun_append(Producer *, uint16_t, ") != null);
    try std.testing.expect(std.mem.indexOf(u8, cdef, "#define ORUN_RING_FENCED -3\n") != null);
    try std.testing.expect(std.mem.indexOf(u8, cdef, "    Cursor cursors[2];\n") != null);
    try std.testing.expectEqual(fnv(cdef), api.orun_abi());
}
