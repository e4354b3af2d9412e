// Lists for the text and the operands of wgmma with an accumulator of N columns, N / 8 of them pasted into the names: WGMMA_REGISTERS(9)
// is "%3, … %38", as operands 0 to 2 are the two matrices and whether to add. Written out, since the preprocessor cannot count.
#pragma once

#define WGMMA_PASTE(a, b) a##b
#define WGMMA_REGISTERS(n) WGMMA_PASTE(WGMMA_REGISTERS_, n)
#define WGMMA_OPERANDS(n) WGMMA_PASTE(WGMMA_OPERANDS_, n)

#define WGMMA_REGISTERS_1 "%3, %4, %5, %6"
#define WGMMA_OPERANDS_1 "+f"(acc[0]), "+f"(acc[1]), "+f"(acc[2]), "+f"(acc[3])
#define WGMMA_REGISTERS_2 WGMMA_REGISTERS_1 ", %7, %8, %9, %10"
#define WGMMA_OPERANDS_2 WGMMA_OPERANDS_1, "+f"(acc[4]), "+f"(acc[5]), "+f"(acc[6]), "+f"(acc[7])
#define WGMMA_REGISTERS_3 WGMMA_REGISTERS_2 ", %11, %12, %13, %14"
#define WGMMA_OPERANDS_3 WGMMA_OPERANDS_2, "+f"(acc[8]), "+f"(acc[9]), "+f"(acc[10]), "+f"(acc[11])
#define WGMMA_REGISTERS_4 WGMMA_REGISTERS_3 ", %15, %16, %17, %18"
#define WGMMA_OPERANDS_4 WGMMA_OPERANDS_3, "+f"(acc[12]), "+f"(acc[13]), "+f"(acc[14]), "+f"(acc[15])
#define WGMMA_REGISTERS_5 WGMMA_REGISTERS_4 ", %19, %20, %21, %22"
#define WGMMA_OPERANDS_5 WGMMA_OPERANDS_4, "+f"(acc[16]), "+f"(acc[17]), "+f"(acc[18]), "+f"(acc[19])
#define WGMMA_REGISTERS_6 WGMMA_REGISTERS_5 ", %23, %24, %25, %26"
#define WGMMA_OPERANDS_6 WGMMA_OPERANDS_5, "+f"(acc[20]), "+f"(acc[21]), "+f"(acc[22]), "+f"(acc[23])
#define WGMMA_REGISTERS_7 WGMMA_REGISTERS_6 ", %27, %28, %29, %30"
#define WGMMA_OPERANDS_7 WGMMA_OPERANDS_6, "+f"(acc[24]), "+f"(acc[25]), "+f"(acc[26]), "+f"(acc[27])
#define WGMMA_REGISTERS_8 WGMMA_REGISTERS_7 ", %31, %32, %33, %34"
#define WGMMA_OPERANDS_8 WGMMA_OPERANDS_7, "+f"(acc[28]), "+f"(acc[29]), "+f"(acc[30]), "+f"(acc[31])
#define WGMMA_REGISTERS_9 WGMMA_REGISTERS_8 ", %35, %36, %37, %38"
#define WGMMA_OPERANDS_9 WGMMA_OPERANDS_8, "+f"(acc[32]), "+f"(acc[33]), "+f"(acc[34]), "+f"(acc[35])
#define WGMMA_REGISTERS_10 WGMMA_REGISTERS_9 ", %39, %40, %41, %42"
#define WGMMA_OPERANDS_10 WGMMA_OPERANDS_9, "+f"(acc[36]), "+f"(acc[37]), "+f"(acc[38]), "+f"(acc[39])
#define WGMMA_REGISTERS_11 WGMMA_REGISTERS_10 ", %43, %44, %45, %46"
#define WGMMA_OPERANDS_11 WGMMA_OPERANDS_10, "+f"(acc[40]), "+f"(acc[41]), "+f"(acc[42]), "+f"(acc[43])
#define WGMMA_REGISTERS_12 WGMMA_REGISTERS_11 ", %47, %48, %49, %50"
#define WGMMA_OPERANDS_12 WGMMA_OPERANDS_11, "+f"(acc[44]), "+f"(acc[45]), "+f"(acc[46]), "+f"(acc[47])
#define WGMMA_REGISTERS_13 WGMMA_REGISTERS_12 ", %51, %52, %53, %54"
#define WGMMA_OPERANDS_13 WGMMA_OPERANDS_12, "+f"(acc[48]), "+f"(acc[49]), "+f"(acc[50]), "+f"(acc[51])
#define WGMMA_REGISTERS_14 WGMMA_REGISTERS_13 ", %55, %56, %57, %58"
#define WGMMA_OPERANDS_14 WGMMA_OPERANDS_13, "+f"(acc[52]), "+f"(acc[53]), "+f"(acc[54]), "+f"(acc[55])
#define WGMMA_REGISTERS_15 WGMMA_REGISTERS_14 ", %59, %60, %61, %62"
#define WGMMA_OPERANDS_15 WGMMA_OPERANDS_14, "+f"(acc[56]), "+f"(acc[57]), "+f"(acc[58]), "+f"(acc[59])
#define WGMMA_REGISTERS_16 WGMMA_REGISTERS_15 ", %63, %64, %65, %66"
#define WGMMA_OPERANDS_16 WGMMA_OPERANDS_15, "+f"(acc[60]), "+f"(acc[61]), "+f"(acc[62]), "+f"(acc[63])
#define WGMMA_REGISTERS_17 WGMMA_REGISTERS_16 ", %67, %68, %69, %70"
#define WGMMA_OPERANDS_17 WGMMA_OPERANDS_16, "+f"(acc[64]), "+f"(acc[65]), "+f"(acc[66]), "+f"(acc[67])
#define WGMMA_REGISTERS_18 WGMMA_REGISTERS_17 ", %71, %72, %73, %74"
#define WGMMA_OPERANDS_18 WGMMA_OPERANDS_17, "+f"(acc[68]), "+f"(acc[69]), "+f"(acc[70]), "+f"(acc[71])
#define WGMMA_REGISTERS_19 WGMMA_REGISTERS_18 ", %75, %76, %77, %78"
#define WGMMA_OPERANDS_19 WGMMA_OPERANDS_18, "+f"(acc[72]), "+f"(acc[73]), "+f"(acc[74]), "+f"(acc[75])
#define WGMMA_REGISTERS_20 WGMMA_REGISTERS_19 ", %79, %80, %81, %82"
#define WGMMA_OPERANDS_20 WGMMA_OPERANDS_19, "+f"(acc[76]), "+f"(acc[77]), "+f"(acc[78]), "+f"(acc[79])
#define WGMMA_REGISTERS_21 WGMMA_REGISTERS_20 ", %83, %84, %85, %86"
#define WGMMA_OPERANDS_21 WGMMA_OPERANDS_20, "+f"(acc[80]), "+f"(acc[81]), "+f"(acc[82]), "+f"(acc[83])
#define WGMMA_REGISTERS_22 WGMMA_REGISTERS_21 ", %87, %88, %89, %90"
#define WGMMA_OPERANDS_22 WGMMA_OPERANDS_21, "+f"(acc[84]), "+f"(acc[85]), "+f"(acc[86]), "+f"(acc[87])
#define WGMMA_REGISTERS_23 WGMMA_REGISTERS_22 ", %91, %92, %93, %94"
#define WGMMA_OPERANDS_23 WGMMA_OPERANDS_22, "+f"(acc[88]), "+f"(acc[89]), "+f"(acc[90]), "+f"(acc[91])
#define WGMMA_REGISTERS_24 WGMMA_REGISTERS_23 ", %95, %96, %97, %98"
#define WGMMA_OPERANDS_24 WGMMA_OPERANDS_23, "+f"(acc[92]), "+f"(acc[93]), "+f"(acc[94]), "+f"(acc[95])
#define WGMMA_REGISTERS_25 WGMMA_REGISTERS_24 ", %99, %100, %101, %102"
#define WGMMA_OPERANDS_25 WGMMA_OPERANDS_24, "+f"(acc[96]), "+f"(acc[97]), "+f"(acc[98]), "+f"(acc[99])
#define WGMMA_REGISTERS_26 WGMMA_REGISTERS_25 ", %103, %104, %105, %106"
#define WGMMA_OPERANDS_26 WGMMA_OPERANDS_25, "+f"(acc[100]), "+f"(acc[101]), "+f"(acc[102]), "+f"(acc[103])
#define WGMMA_REGISTERS_27 WGMMA_REGISTERS_26 ", %107, %108, %109, %110"
#define WGMMA_OPERANDS_27 WGMMA_OPERANDS_26, "+f"(acc[104]), "+f"(acc[105]), "+f"(acc[106]), "+f"(acc[107])
#define WGMMA_REGISTERS_28 WGMMA_REGISTERS_27 ", %111, %112, %113, %114"
#define WGMMA_OPERANDS_28 WGMMA_OPERANDS_27, "+f"(acc[108]), "+f"(acc[109]), "+f"(acc[110]), "+f"(acc[111])
#define WGMMA_REGISTERS_29 WGMMA_REGISTERS_28 ", %115, %116, %117, %118"
#define WGMMA_OPERANDS_29 WGMMA_OPERANDS_28, "+f"(acc[112]), "+f"(acc[113]), "+f"(acc[114]), "+f"(acc[115])
#define WGMMA_REGISTERS_30 WGMMA_REGISTERS_29 ", %119, %120, %121, %122"
#define WGMMA_OPERANDS_30 WGMMA_OPERANDS_29, "+f"(acc[116]), "+f"(acc[117]), "+f"(acc[118]), "+f"(acc[119])
#define WGMMA_REGISTERS_31 WGMMA_REGISTERS_30 ", %123, %124, %125, %126"
#define WGMMA_OPERANDS_31 WGMMA_OPERANDS_30, "+f"(acc[120]), "+f"(acc[121]), "+f"(acc[122]), "+f"(acc[123])
#define WGMMA_REGISTERS_32 WGMMA_REGISTERS_31 ", %127, %128, %129, %130"
#define WGMMA_OPERANDS_32 WGMMA_OPERANDS_31, "+f"(acc[124]), "+f"(acc[125]), "+f"(acc[126]), "+f"(acc[127])
