//! The record: one format in the journal ring and in the log, so that a commit copies and never
//! translates. A record is checked when it is written and each time it is read back.
const std = @import("std");
const builtin = @import("builtin");
const assert = std.debug.assert;
const crc32c = @import("crc32c.zig");
const Status = @import("status.zig").Status;

pub const alignment = 8;
/// A bound on what sizes in a damaged header can make us believe.
pub const payload_max: u32 = 1 << 30;
/// Offsets of records are 32 bits wide.
pub const scan_size_max: u64 = std.math.maxInt(u32);

pub const Header = extern struct {
    /// The whole record: header, payload, padding.
    size: u32,
    /// CRC-32C of everything but this field.
    crc: u32,
    lsn: u64,
    time_ms: u64,
    ref: u64,
    epoch: u32,
    payload_size: u32,
    /// The checksum of the record before: a record that was lost, repeated or moved breaks the chain.
    prev_crc: u32,
    kind: u8,
    flags: u8,
    reserved: u16 = 0,

    comptime {
        assert(@sizeOf(Header) == 48);
        assert(@offsetOf(Header, "crc") == 4);
        assert(@offsetOf(Header, "lsn") == 8);
        assert(@offsetOf(Header, "epoch") == 32);
        assert(@offsetOf(Header, "kind") == 44);
        assert(builtin.cpu.arch.endian() == .little);
    }
};

pub const header_size = @sizeOf(Header);

/// What a scan says about one record; payload offsets count from the start of the scanned data.
pub const Entry = extern struct {
    lsn: u64,
    time_ms: u64,
    ref: u64,
    payload_start: u32,
    payload_end: u32,
    epoch: u32,
    crc: u32,
    kind: u8,
    flags: u8,
    _reserved: [6]u8 = @splat(0),

    comptime {
        assert(@sizeOf(Entry) == 48);
    }
};

/// What a scan says about all records that are in order.
pub const Summary = extern struct {
    /// Bytes of good records, and so the offset of the first bad one.
    size: u64 = 0,
    count: u64 = 0,
    first_lsn: u64 = 0,
    last_lsn: u64 = 0,
    first_ms: u64 = 0,
    last_ms: u64 = 0,
    /// All flags or-ed.
    flags: u32 = 0,
    /// Bit 1 << kind for each kind seen.
    kinds: u32 = 0,
    last_crc: u32 = 0,
    /// Why the scan ended: a Status.
    status: i32 = 0,
};

/// What the first record must continue; null: anything.
pub const Expected = struct {
    lsn: ?u64 = null,
    prev_crc: ?u32 = null,
    epoch: ?u32 = null,
};

/// The size of a record with such a payload.
pub fn sizeFor(payload_size: usize) u64 {
    assert(payload_size <= payload_max);
    return header_size + std.mem.alignForward(u64, payload_size, alignment);
}

/// Fill in size, payload size and checksum; returns the checksum.
pub fn seal(header: *Header, payload: []const u8) u32 {
    assert(payload.len <= payload_max);
    assert(header.reserved == 0);
    header.size = @intCast(sizeFor(payload.len));
    header.payload_size = @intCast(payload.len);
    var crc = headerCrc(header);
    crc = crc32c.update(crc, payload);
    const zeros: [alignment]u8 = @splat(0);
    crc = crc32c.update(crc, zeros[0 .. header.size - header_size - payload.len]);
    header.crc = crc;
    return crc;
}

fn headerCrc(header: *const Header) u32 {
    const bytes = std.mem.asBytes(header);
    return crc32c.update(crc32c.hash(bytes[0..4]), bytes[8..]);
}

/// Write one record into `out`; returns its size, 0 when it does not fit.
pub fn write(out: []u8, fields: Header, payload: []const u8) u64 {
    const size = sizeFor(payload.len);
    if (size > out.len) return 0;
    var header = fields;
    _ = seal(&header, payload);
    @memcpy(out[0..header_size], std.mem.asBytes(&header));
    @memcpy(out[header_size..][0..payload.len], payload);
    @memset(out[header_size + payload.len .. size], 0);
    return size;
}

/// Is there a sound record at the start of `data`? The data is hostile: it is checked, never asserted.
pub fn check(data: []const u8, header: *Header) Status {
    if (data.len < header_size) return .record_cut;
    header.* = std.mem.bytesToValue(Header, data[0..header_size]);
    if (header.payload_size > payload_max) return .record_size;
    if (header.size != sizeFor(header.payload_size)) return .record_size;
    if (header.size > data.len) return .record_cut;
    const crc = crc32c.update(headerCrc(header), data[header_size..header.size]);
    if (crc != header.crc) return .record_checksum;
    if (header.reserved != 0 or header.kind >= 32) return .record_layout;
    return .ok;
}

fn continues(header: *const Header, expected: Expected) Status {
    if (expected.lsn) |lsn| if (header.lsn != lsn) return .record_lsn;
    if (expected.prev_crc) |crc| if (header.prev_crc != crc) return .record_chain;
    if (expected.epoch) |epoch| if (header.epoch != epoch) return .record_epoch;
    return .ok;
}

/// Walk over records laid end to end, until the end or the first that is not sound. `entries` is
/// filled as far as it reaches (an empty slice: nothing is listed).
pub fn scan(data: []const u8, start: Expected, entries: []Entry, summary: *Summary) Status {
    assert(data.len <= scan_size_max);
    summary.* = .{};
    var expected = start;
    var at: usize = 0;
    var status: Status = .ok;
    while (at < data.len) {
        var header: Header = undefined;
        status = check(data[at..], &header);
        if (status == .ok) status = continues(&header, expected);
        if (status != .ok) break;
        if (summary.count < entries.len) entries[@intCast(summary.count)] = .{
            .lsn = header.lsn,
            .time_ms = header.time_ms,
            .ref = header.ref,
            .payload_start = @intCast(at + header_size),
            .payload_end = @intCast(at + header_size + header.payload_size),
            .epoch = header.epoch,
            .crc = header.crc,
            .kind = header.kind,
            .flags = header.flags,
        };
        if (summary.count == 0) {
            summary.first_lsn = header.lsn;
            summary.first_ms = header.time_ms;
        }
        summary.count += 1;
        summary.last_lsn = header.lsn;
        summary.last_ms = header.time_ms;
        summary.last_crc = header.crc;
        summary.flags |= header.flags;
        summary.kinds |= @as(u32, 1) << @intCast(header.kind);
        expected.lsn = header.lsn +% 1;
        expected.prev_crc = header.crc;
        at += header.size;
    }
    assert(at <= data.len);
    summary.size = at;
    summary.status = @backingInt(status);
    return status;
}

fn writeMany(out: []u8, count: u64) []u8 {
    var at: usize = 0;
    var crc: u32 = 7;
    for (0..count) |i| {
        const payload = "payload of some length"[0 .. i % 20];
        const fields: Header = .{
            .size = 0,
            .crc = 0,
            .lsn = 100 + i,
            .time_ms = 5000 + i,
            .ref = i,
            .epoch = 3,
            .payload_size = 0,
            .prev_crc = crc,
            .kind = @intCast(1 + i % 5),
            .flags = @intCast(i % 4),
        };
        const size = write(out[at..], fields, payload);
        crc = std.mem.readInt(u32, out[at + 4 ..][0..4], .little);
        at += size;
    }
    return out[0..at];
}

test "a scan lists what was written" {
    var buffer: [4096]u8 = undefined;
    const data = writeMany(&buffer, 30);
    var entries: [30]Entry = undefined;
    var summary: Summary = undefined;
    const expected: Expected = .{ .lsn = 100, .prev_crc = 7, .epoch = 3 };
    try std.testing.expectEqual(Status.ok, scan(data, expected, &entries, &summary));
    try std.testing.expectEqual(@as(u64, 30), summary.count);
    try std.testing.expectEqual(@as(u64, data.len), summary.size);
    try std.testing.expectEqual(@as(u64, 129), summary.last_lsn);
    try std.testing.expectEqual(@as(u32, 0b111110), summary.kinds);
    try std.testing.expectEqual(@as(u32, 3), summary.flags);
    const seventh = entries[7];
    try std.testing.expectEqualStrings("payload", data[seventh.payload_start..seventh.payload_end]);
}

test "every flipped bit and every cut is seen at the record it is in" {
    var buffer: [1024]u8 = undefined;
    const data = writeMany(&buffer, 6);
    var entries: [6]Entry = undefined;
    var summary: Summary = undefined;
    _ = scan(data, .{}, &entries, &summary);
    var starts: [7]usize = undefined;
    for (entries, 0..) |entry, i| starts[i] = entry.payload_start - header_size;
    starts[6] = data.len;
    var record: usize = 0;
    for (0..data.len) |i| {
        if (i >= starts[record + 1]) record += 1;
        for (0..8) |bit| {
            const mask = @as(u8, 1) << @intCast(bit);
            data[i] ^= mask;
            defer data[i] ^= mask;
            try std.testing.expect(scan(data, .{ .prev_crc = 7 }, &entries, &summary) != .ok);
            try std.testing.expectEqual(@as(u64, starts[record]), summary.size);
        }
        const cut = scan(data[0..i], .{}, &entries, &summary);
        try std.testing.expectEqual(if (i == starts[record]) Status.ok else .record_cut, cut);
        try std.testing.expectEqual(@as(u64, starts[record]), summary.size);
    }
}

test "a sound record in the wrong place is refused" {
    var buffer: [1024]u8 = undefined;
    const data = writeMany(&buffer, 4);
    var summary: Summary = undefined;
    var entries: [4]Entry = undefined;
    _ = scan(data, .{}, &entries, &summary);
    const second = entries[1].payload_start - header_size;
    try std.testing.expectEqual(Status.record_lsn, scan(data, .{ .lsn = 99 }, &.{}, &summary));
    try std.testing.expectEqual(Status.record_chain, scan(data, .{ .prev_crc = 8 }, &.{}, &summary));
    try std.testing.expectEqual(Status.record_epoch, scan(data, .{ .epoch = 4 }, &.{}, &summary));
    try std.testing.expectEqual(Status.ok, scan(data[second..], .{ .lsn = 101 }, &.{}, &summary));
    try std.testing.expectEqual(@as(u64, 3), summary.count);
}

test "a record that does not fit is not written" {
    var out: [63]u8 = undefined;
    const fields = std.mem.zeroInit(Header, .{ .kind = 1 });
    try std.testing.expectEqual(@as(u64, 0), write(&out, fields, "12345678x"));
    try std.testing.expectEqual(@as(u64, 56), write(&out, fields, "12345678"));
}
