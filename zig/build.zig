//! For developers: `zig build test`, `zig build test --fuzz=200K`, `zig build check`. Never used to install:
//! orun calls the compiler directly (orun/engine/build.py), because the first `zig build` takes a minute.
const std = @import("std");

pub fn build(b: *std.Build) void {
    const target = b.standardTargetOptions(.{});
    const optimize = b.standardOptimizeOption(.{});
    const run_tests = b.step("test", "Run the tests");
    const check = b.step("check", "Compile both programs for every supported machine");
    inline for (.{ "root.zig", "guard.zig" }) |name| {
        const module = b.createModule(.{
            .root_source_file = b.path(name),
            .target = target,
            .optimize = optimize,
        });
        // The fuzzer needs LLVM's instrumentation.
        const tests = b.addTest(.{ .name = name, .root_module = module, .use_llvm = true });
        run_tests.dependOn(&b.addRunArtifact(tests).step);
    }
    inline for (.{ .x86_64, .aarch64 }) |arch| {
        inline for (.{ "root.zig", "guard.zig" }) |name| {
            const object = b.addObject(.{ .name = name ++ "-" ++ @tagName(arch), .root_module = b.createModule(.{
                .root_source_file = b.path(name),
                .target = b.resolveTargetQuery(.{ .cpu_arch = arch, .os_tag = .linux, .abi = .none }),
                .optimize = .safe,
            }) });
            check.dependOn(&object.step);
        }
    }
}
