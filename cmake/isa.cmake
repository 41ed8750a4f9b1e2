# The one table ISA token -> compiler flags. A token is spelled the same in file names, kernel names and GGML_ALLOY_ISA;
# src/base/isa.inc holds the run-time side (the CPU features behind each token).
set(ALLOY_ISA_X86 avx2 avx2_vnni avx512 avx512_vnni avx512_bf16)
set(ALLOY_ISA_ARM neon neon_dotprod neon_i8mm)

set(ALLOY_FLAGS_avx2         -mavx2 -mfma -mf16c -mbmi2)
set(ALLOY_FLAGS_avx2_vnni    ${ALLOY_FLAGS_avx2} -mavxvnni)
set(ALLOY_FLAGS_avx512       ${ALLOY_FLAGS_avx2} -mavx512f -mavx512bw -mavx512vl -mavx512dq -mavx512cd -mprefer-vector-width=512)
set(ALLOY_FLAGS_avx512_vnni  ${ALLOY_FLAGS_avx512} -mavx512vnni)
set(ALLOY_FLAGS_avx512_bf16  ${ALLOY_FLAGS_avx512_vnni} -mavx512bf16)
set(ALLOY_FLAGS_neon         -march=armv8-a)
set(ALLOY_FLAGS_neon_dotprod -march=armv8.2-a+dotprod+fp16)
set(ALLOY_FLAGS_neon_i8mm    -march=armv8.6-a+dotprod+fp16+i8mm)

if(CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64")
  set(ALLOY_ISA_TARGET ${ALLOY_ISA_X86})
elseif(CMAKE_SYSTEM_PROCESSOR MATCHES "aarch64|arm64")
  set(ALLOY_ISA_TARGET ${ALLOY_ISA_ARM})
else()
  set(ALLOY_ISA_TARGET)
endif()

# alloy_kernel_family(NAME): the object library alloy_NAME from src/kernels/NAME: the selector NAME.cpp and each ISA file present,
# compiled with the flags of its token. -ffp-contract=off: a kernel says itself where it wants a fused multiply-add.
function(alloy_kernel_family name)
  set(dir ${PROJECT_SOURCE_DIR}/src/kernels/${name})
  add_library(alloy_${name} OBJECT ${dir}/${name}.cpp)
  target_include_directories(alloy_${name} PUBLIC ${PROJECT_SOURCE_DIR}/src)
  foreach(isa IN LISTS ALLOY_ISA_TARGET)
    if(EXISTS ${dir}/${isa}.cpp)
      target_sources(alloy_${name} PRIVATE ${dir}/${isa}.cpp)
      string(REPLACE ";" " " flags "${ALLOY_FLAGS_${isa}} -ffp-contract=off -fno-exceptions -fno-rtti")
      set_property(SOURCE ${dir}/${isa}.cpp PROPERTY COMPILE_FLAGS "${flags}")
    endif()
  endforeach()
  set_property(GLOBAL APPEND PROPERTY ALLOY_FAMILIES ${name})
endfunction()
