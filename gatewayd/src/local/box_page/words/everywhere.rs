//! On every page.

super::words! {
/// On every page.
Everywhere {
    devices: "Wearables" / "पहनने वाले यंत्र";
    pair: "Pair a wearable" / "नया यंत्र जोड़ें";
    staff: "Staff" / "कर्मचारी";
    audit: "Who did what" / "किसने क्या किया";
    help: "Help" / "सहायता";
    log_out: "Log out" / "बाहर निकलें";
    language: "Language" / "भाषा";
    skip: "To the content" / "सीधे सामग्री पर";
    menu: "Menu" / "मेन्यू";
    back: "Back" / "पीछे";
    next: "Next" / "आगे";
    cancel: "Cancel" / "रद्द करें";
    yes: "yes" / "हाँ";
    no: "no" / "नहीं";
    unknown: "not known" / "पता नहीं";
    never: "never" / "कभी नहीं";
    seconds_ago: "{} s ago" / "{} सेकंड पहले";
    minutes_ago: "{} min ago" / "{} मिनट पहले";
    hours_ago: "{} h ago" / "{} घंटे पहले";
    days_ago: "{} days ago" / "{} दिन पहले";
    hours: "{} h" / "{} घंटे";
    less_than_an_hour: "less than 1 h" / "1 घंटे से कम";
    expired_title: "This form is too old" / "यह फ़ॉर्म पुराना हो गया है";
    expired: "It was opened before you logged in, or in another browser. Nothing was changed. Go back and do it again." / "यह आपके लॉग-इन से पहले या किसी दूसरे ब्राउज़र में खोला गया था। कुछ नहीं बदला गया। पीछे जाकर फिर से करें।";
    missing_title: "There is no such page" / "ऐसा कोई पृष्ठ नहीं है";
    missing: "It may have been about a wearable that this box no longer knows." / "शायद यह किसी ऐसे यंत्र के बारे में था जिसे यह बॉक्स अब नहीं जानता।";
    too_large_title: "That is too much" / "यह बहुत बड़ा है";
    too_large: "The box takes pictures of up to 12 MB. Take it again with a smaller size." / "बॉक्स 12 MB तक की फ़ोटो लेता है। छोटे आकार में फिर से फ़ोटो लें।";
    not_kept: "The box could not save it. Is its disk full? Try again; if it stays, call the installer." / "बॉक्स इसे सहेज नहीं सका। क्या उसकी डिस्क भर गई है? फिर कोशिश करें; न हो तो लगाने वाले को बुलाएँ।";
    busy: "The box has much to do. Wait a moment and try again." / "बॉक्स अभी व्यस्त है। थोड़ा रुककर फिर कोशिश करें।";
    home: "To the start" / "मुख्य पृष्ठ पर";
}
}
