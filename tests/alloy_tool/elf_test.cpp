// The ELF reader on files made byte by byte: right ones, and every way of being wrong.
#include "elf_file.h"

#include "command.h"

#include <cstring>

#include <elf.h>

#include <gtest/gtest.h>

namespace alloy::tool {
namespace {

using test::has;
using test::temporary_folder;

#if defined(__aarch64__)
constexpr uint16_t machine_here = EM_AARCH64;
#else
constexpr uint16_t machine_here = EM_X86_64;
#endif

// Header, two program headers, dynamic section, strings; loaded at an address that is not the file offset.
struct crafted {
    static constexpr uint64_t base = 0x10000;
    Elf64_Ehdr header{};
    Elf64_Phdr segments[2]{};
    Elf64_Dyn dynamic[8]{};
    char strings[128]{};

    crafted() {
        std::memcpy(header.e_ident, ELFMAG, SELFMAG);
        header.e_ident[EI_CLASS] = ELFCLASS64;
        header.e_ident[EI_DATA] = ELFDATA2LSB;
        header.e_type = ET_DYN;
        header.e_machine = machine_here;
        header.e_phoff = sizeof(header);
        header.e_phentsize = sizeof(Elf64_Phdr);
        header.e_phnum = 2;
        segments[0].p_type = PT_LOAD;
        segments[0].p_vaddr = base;
        segments[0].p_filesz = sizeof(crafted);
        segments[1].p_type = PT_DYNAMIC;
        segments[1].p_offset = sizeof(header) + sizeof(segments);
        segments[1].p_vaddr = base + segments[1].p_offset;
        segments[1].p_filesz = sizeof(dynamic);
        const char texts[] = "\0libggml.so.0\0libc.so.6\0$ORIGIN/../lib::/opt/lib:\0me.so";
        std::memcpy(strings, texts, sizeof(texts));
        add(0, DT_NEEDED, 1);
        add(1, DT_NEEDED, 14);
        add(2, DT_RUNPATH, 24);
        add(3, DT_SONAME, 50);
        add(4, DT_STRTAB, base + sizeof(header) + sizeof(segments) + sizeof(dynamic));
        add(5, DT_STRSZ, sizeof(strings));
    }
    void add(int index, int64_t tag, uint64_t value) {
        dynamic[index].d_tag = tag;
        dynamic[index].d_un.d_val = value;
    }
    std::string bytes() const { return {reinterpret_cast<const char *>(this), sizeof(crafted)}; }
};

// What read_elf says about these bytes; empty when it is content.
std::string complaint_about(const std::string & bytes, elf_file & elf) {
    const temporary_folder folder;
    std::string complaint;
    const bool good = read_elf(folder.write("file", bytes), elf, complaint);
    EXPECT_EQ(good, complaint.empty());
    EXPECT_EQ(complaint.find('\n'), std::string::npos);
    return complaint;
}
std::string complaint_about(const std::string & bytes) {
    elf_file elf;
    return complaint_about(bytes, elf);
}

TEST(elf, reads_what_a_library_needs) {
    elf_file elf;
    EXPECT_EQ(complaint_about(crafted().bytes(), elf), "");
    EXPECT_TRUE(elf.is_dynamic);
    EXPECT_EQ(elf.needed, (std::vector<std::string>{"libggml.so.0", "libc.so.6"}));
    EXPECT_EQ(elf.runpath, (std::vector<std::string>{"$ORIGIN/../lib", "/opt/lib"}));
    EXPECT_EQ(elf.soname, "me.so");
    EXPECT_TRUE(elf.rpath.empty());
}

TEST(elf, program_without_dynamic_section) {
    crafted file;
    file.header.e_phnum = 1;
    elf_file elf;
    EXPECT_EQ(complaint_about(file.bytes(), elf), "");
    EXPECT_FALSE(elf.is_dynamic);
}

TEST(elf, names_what_is_wrong) {
    EXPECT_TRUE(has(complaint_about(""), "no ELF file"));
    EXPECT_TRUE(has(complaint_about("#!/bin/sh\nexec llama-server\n"), "no ELF file"));
    crafted file;
    file.header.e_ident[EI_CLASS] = ELFCLASS32;
    EXPECT_TRUE(has(complaint_about(file.bytes()), "32-bit"));
    EXPECT_TRUE(has(complaint_about(file.bytes().substr(0, 52)), "32-bit"));
    file = {};
    file.header.e_ident[EI_DATA] = ELFDATA2MSB;
    EXPECT_TRUE(has(complaint_about(file.bytes()), "big-endian"));
    file = {};
    file.header.e_machine = EM_RISCV;
    EXPECT_TRUE(has(complaint_about(file.bytes()), "made for ELF machine 243"));
    file = {};
    file.header.e_type = ET_REL;
    EXPECT_TRUE(has(complaint_about(file.bytes()), "type 1"));
}

TEST(elf, cut_short_anywhere) {
    const std::string whole = crafted().bytes();
    const size_t end_of_texts = whole.size() - 128 + 56;
    for (size_t size = 0; size < end_of_texts; size++) EXPECT_NE(complaint_about(whole.substr(0, size)), "") << size << " bytes";
}

TEST(elf, wild_values_are_refused_not_followed) {
    crafted file;
    file.header.e_phoff = UINT64_MAX - 8;
    EXPECT_TRUE(has(complaint_about(file.bytes()), "cut short"));
    file = {};
    file.segments[1].p_offset = UINT64_MAX / 2;
    EXPECT_TRUE(has(complaint_about(file.bytes()), "cut short"));
    file = {};
    file.add(4, DT_STRTAB, 1); // no segment holds this address
    EXPECT_TRUE(has(complaint_about(file.bytes()), "cut short"));
    file = {};
    file.add(0, DT_NEEDED, UINT64_MAX - 3);
    EXPECT_NE(complaint_about(file.bytes()), "");
    file = {};
    file.segments[1].p_filesz = UINT64_MAX;
    EXPECT_TRUE(has(complaint_about(file.bytes()), "cut short"));
    file = {};
    file.header.e_phnum = 0xffff;
    EXPECT_TRUE(has(complaint_about(file.bytes()), "cut short"));
}

TEST(elf, every_flipped_byte_is_survived) {
    const std::string whole = crafted().bytes();
    for (size_t at = 0; at < whole.size(); at++) {
        std::string bytes = whole;
        bytes[at] = static_cast<char>(~bytes[at]);
        elf_file elf;
        complaint_about(bytes, elf);
    }
}

TEST(elf, finds_texts_across_pieces) {
    const temporary_folder folder;
    const std::string path =
        folder.write("file", std::string((size_t(4) << 20) - 5, 'x') + "ggml-alloy: no\nggml-alloy 1.2.3 (CPU)");
    EXPECT_TRUE(file_contains(path, "ggml-alloy 1.2"));
    EXPECT_FALSE(file_contains(path, "ggml-metal"));
    EXPECT_EQ(text_after(path, "ggml-alloy "), "1.2.3");
    EXPECT_EQ(text_after(folder.path / "absent", "x"), "");
}

} // namespace
} // namespace alloy::tool
