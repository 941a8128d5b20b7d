//! Why something did not work, and what to do about it. The desk says it in English for programs; here it is
//! said for people, in their language.

use kinara_protocol::channel::{self, ChannelId};
use kinara_protocol::intervals::{CHANGEABLE, NotTaken};

use super::{Language, fill};
use crate::desk::{DeskError, Why};

/// What happened.
pub(in crate::local::box_page) fn happened(language: Language, why: &Why) -> String {
    let hindi = match why {
        Why::TooFar => "यंत्र बहुत दूर है।",
        Why::WrongCode => "यह कोड इस यंत्र का नहीं है।",
        Why::TooManyWrongCodes => "तीन ग़लत कोड से जोड़ने की खिड़की बंद हो गई।",
        Why::OutOfSlots => "यह बॉक्स एक साथ जितने यंत्र सँभाल सकता है, उतने जुड़े हैं।",
        Why::WindowClosed => "जोड़ने की खिड़की बंद है।",
        Why::StaleBond => "यंत्र और यह बॉक्स अब एक-दूसरे को नहीं पहचानते।",
        Why::NotAuthenticated => "यंत्र यह साबित नहीं कर सका कि वह वही है जो बताता है।",
        Why::NonceSpent => "यंत्र जोड़ने का ऐसा अंक दे रहा है जो पहले इस्तेमाल हो चुका है।",
        Why::Replaces => "यंत्र कहता है कि वह वही है जिसे कोई पहनता है।",
        Why::Timeout => "यंत्र ने समय पर उत्तर नहीं दिया।",
        Why::GivenUp => "यंत्र पर दिखा अंक किसी ने नहीं लिखा।",
        Why::NotKept => "यह बॉक्स अभी कोई जोड़ सहेज नहीं सकता।",
        Why::Radio(detail) if language == Language::Hindi => {
            return fill("ब्लूटूथ विफल रहा: {}।", &[detail]);
        }
        Why::Radio(_) => "",
    };
    match language {
        Language::English => why.text(),
        Language::Hindi => hindi.to_owned(),
    }
}

/// What to do about it.
pub(in crate::local::box_page) fn advice(language: Language, why: &Why) -> &'static str {
    let hindi = match why {
        Why::TooFar => "उसे बॉक्स से दो मीटर के भीतर लाएँ और फिर कोशिश करें।",
        Why::WrongCode => "लेबल के 16 अक्षर मिलाएँ और यंत्र को फिर से चुनें।",
        Why::TooManyWrongCodes => "देखें कि लेबल इसी यंत्र का है, फिर खिड़की दोबारा खोलें।",
        Why::OutOfSlots => "जो यंत्र काम में नहीं है उसे भुलाएँ, या एक और बॉक्स लगाएँ।",
        Why::WindowClosed => "यंत्र का बटन दबाएँ, यहाँ खिड़की खोलें, और फिर कोशिश करें।",
        Why::StaleBond => "इस यंत्र के लिए “भुलाएँ” चुनें, फिर उसे दोबारा जोड़ें।",
        Why::NotAuthenticated => {
            "इसे नहीं जोड़ा गया। अगर यह सचमुच आपका है तो केवल इसी को पास लाकर फिर कोशिश करें; \
             नहीं तो क्लिनिक के प्रशासक को बताएँ।"
        }
        Why::NonceSpent => "यंत्र का बटन फिर दबाएँ और उसे दोबारा चुनें।",
        Why::Replaces => {
            "इसे नहीं जोड़ा गया। अगर उसे रीसेट किया गया है या वह उसकी जगह लेता है, तो पहले पुराने को पहनने वाले से वापस लें, फिर इसे जोड़ें।"
        }
        Why::Timeout => "उसे पास लाएँ, बटन फिर दबाएँ, और कोशिश करें।",
        Why::GivenUp => "फिर से शुरू करें और आधे मिनट में छह अंक लिखें।",
        Why::NotKept => "कुछ नहीं जोड़ा गया। शायद डिस्क भर गई है: बॉक्स पर `kinaractl doctor` चलाएँ।",
        Why::Radio(_) => "फिर कोशिश करें; न हो तो बॉक्स पर `kinaractl doctor` चलाएँ।",
    };
    match language {
        Language::English => why.advice(),
        Language::Hindi => hindi,
    }
}

/// Why the desk did not do it, with what to do.
pub(in crate::local::box_page) fn refused(language: Language, error: &DeskError) -> String {
    if language == Language::English {
        return match error {
            DeskError::Pairing(why) => format!("{} {}", why.text(), why.advice()),
            other => other.to_string(),
        };
    }
    match error {
        DeskError::Pairing(why) => format!("{} {}", happened(language, why), advice(language, why)),
        DeskError::NotOpen => "जोड़ने की खिड़की बंद है। पहले उसे खोलें।".to_owned(),
        DeskError::Busy => "एक यंत्र पहले से जोड़ा जा रहा है। उसके पूरा होने तक रुकें, या खिड़की बंद करें।".to_owned(),
        DeskError::NotNear => "यह यंत्र अब पास नहीं है। उसका बटन दबाएँ और दिखने तक रुकें।".to_owned(),
        DeskError::OtherCode(_) => "यह यंत्र इस तरीके से नहीं जोड़ा जा सकता।".to_owned(),
        DeskError::NoPasskeyWanted => "कोई यंत्र अंक का इंतज़ार नहीं कर रहा। पहले जोड़ना शुरू करें।".to_owned(),
        DeskError::TooLong => "जोड़ने की खिड़की अधिक से अधिक 5 मिनट खुली रहती है।".to_owned(),
        DeskError::UnknownDevice(hardware) => fill("यह बॉक्स {} को नहीं जानता। पहले उसे जोड़ें।", &[hardware]),
        DeskError::UnknownWearer(_) => "यह व्यक्ति सूची में नहीं है। सूची से पहनने वाले को चुनें।".to_owned(),
        DeskError::BadName => "नाम में 1 से 100 अक्षर होते हैं।".to_owned(),
        DeskError::OtherConsentText => "यह सहमति का वर्तमान पाठ नहीं है। नया पाठ दिखाकर फिर पूछें।".to_owned(),
        DeskError::NotDrained { frames } => {
            fill("यंत्र पर अभी पिछले पहनने वाले के {} पैकेट हैं। उनके आने तक उसे पास रखें, या मानें कि वे खो जाएँगे।", &[frames])
        }
        DeskError::NotConnected(_) => "यंत्र जुड़ा नहीं है। उसे बॉक्स के पास लाएँ और “जुड़ा है” दिखने तक रुकें।".to_owned(),
        DeskError::HandOverPending(_) => {
            "यह दर्ज हो गया है। यंत्र दूर है: लौटने पर वह नई शुरुआत करेगा, और तब से वह नए पहनने वाले का होगा। उसे पास लाएँ।"
                .to_owned()
        }
        DeskError::Interval(why) => interval(*why),
        DeskError::MeasuresItself(_) => {
            "यह किसी और निर्माता का सेंसर है। इसके माप का अंतराल यहाँ से नहीं बदलता।".to_owned()
        }
        DeskError::OldFirmware(_) => {
            "सहेज लिया गया, पर यंत्र का सॉफ़्टवेयर पुराना है। उसे अपडेट करें; फिर जुड़ते ही वह ऐसे मापेगा।".to_owned()
        }
        DeskError::Wearable(detail) => {
            fill("यंत्र ने ऐसा नहीं किया: {}। फिर कोशिश करें; न हो तो यंत्र को दोबारा चालू करें।", &[detail])
        }
        DeskError::NotKept(detail) => {
            fill("बॉक्स इसे सहेज नहीं सका: {}। `kinaractl doctor` से उसकी डिस्क जाँचें।", &[detail])
        }
        DeskError::Stopped => "बॉक्स बंद हो रहा है। एक मिनट बाद फिर कोशिश करें।".to_owned(),
    }
}

fn interval(why: NotTaken) -> String {
    let name = |id: ChannelId| channel::by_id(id).map_or("?", |known| known.name);
    match why {
        NotTaken::Channel(id) => {
            let these: Vec<&str> = CHANGEABLE.iter().map(|bounds| name(bounds.channel)).collect();
            fill("{} का अंतराल नहीं बदला जा सकता। ये बदले जा सकते हैं: {}।", &[&name(id), &these.join(", ")])
        }
        NotTaken::Seconds(bounds) => {
            let values: [&dyn std::fmt::Display; 3] =
                [&name(bounds.channel), &bounds.least_s, &bounds.most_s];
            fill("{} का अंतराल {} से {} सेकंड तक हो सकता है।", &values)
        }
    }
}
