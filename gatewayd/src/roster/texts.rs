//! What a wearer is asked when the clinic has given no text of its own.

use super::ConsentText;

/// The version of these texts.
pub const BUILT_IN_VERSION: &str = "kinara-1";

const ENGLISH: &str = "\
This small device measures how warm your skin is, your heartbeat, how you move, and changes of the skin that come with \
sweating. It does so day and night while you wear it.

The box of this clinic collects the measurements and sends them to the clinic's own place in the Kinara service. There \
your clinic's team can see them and is told of hot flashes. Nobody outside your clinic's team sees them together with \
your name, except those who run the service for the clinic and are bound to secrecy.

Wearing it is your own choice. You can take it off at any time, and you can withdraw this consent at any time by \
telling the clinic's staff, without giving a reason and without any disadvantage for your treatment. From then on \
nothing more of yours is kept. What was kept before can be erased if you ask for it.

The device does not replace a doctor and does not call for help. In an emergency, call the emergency number.

I have understood this, my questions have been answered, and I agree that my measurements are used in this way.";

const HINDI: &str = "\
यह छोटा उपकरण आपकी त्वचा का तापमान, आपके दिल की धड़कन, आपकी हलचल और पसीने के साथ त्वचा में होने वाले बदलाव मापता है। \
जब तक आप इसे पहनते हैं, यह दिन-रात मापता रहता है।

इस क्लिनिक का बॉक्स ये माप इकट्ठा करता है और उन्हें Kinara सेवा में क्लिनिक की अपनी जगह पर भेजता है। वहाँ आपके क्लिनिक की टीम \
उन्हें देख सकती है और उसे हॉट फ़्लैश की सूचना मिलती है। क्लिनिक की टीम के बाहर कोई भी इन्हें आपके नाम के साथ नहीं देखता, सिवाय \
उन लोगों के जो क्लिनिक के लिए यह सेवा चलाते हैं और गोपनीयता के लिए बाध्य हैं।

इसे पहनना आपकी अपनी इच्छा है। आप इसे कभी भी उतार सकते हैं, और क्लिनिक के कर्मचारियों को बताकर यह सहमति कभी भी वापस ले सकते हैं। \
इसके लिए कोई कारण बताना ज़रूरी नहीं है और आपके इलाज पर इसका कोई बुरा असर नहीं होगा। उसके बाद आपका कोई नया माप नहीं रखा जाएगा। \
आपके कहने पर पहले रखे गए माप भी मिटाए जा सकते हैं।

यह उपकरण डॉक्टर की जगह नहीं लेता और मदद के लिए किसी को नहीं बुलाता। आपात स्थिति में आपातकालीन नंबर पर फ़ोन करें।

मैंने यह समझ लिया है, मेरे सवालों के जवाब मिल गए हैं, और मैं सहमत हूँ कि मेरे माप इस तरह इस्तेमाल किए जाएँ।";

/// English and Hindi.
pub fn built_in() -> Vec<ConsentText> {
    [("en", ENGLISH), ("hi", HINDI)]
        .map(|(language, text)| ConsentText {
            version: BUILT_IN_VERSION.to_owned(),
            language: language.to_owned(),
            text: text.to_owned(),
        })
        .into()
}
