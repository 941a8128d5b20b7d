//! Devices and the box.

super::words! {
/// Devices and the box.
Device {
    home_title: "This box" / "यह बॉक्स";
    alerts: "Look at this" / "इस पर ध्यान दें";
    cloud: "Cloud" / "क्लाउड";
    cloud_on: "connected" / "जुड़ा है";
    cloud_off: "away: the box keeps everything" / "संपर्क नहीं: बॉक्स सब सँभाल रहा है";
    waiting: "Waiting to be sent" / "भेजने को बाकी";
    waiting_none: "nothing" / "कुछ नहीं";
    waiting_hours: "up to {} h of readings" / "{} घंटे तक के माप";
    waiting_little: "less than 1 h of readings" / "1 घंटे से कम के माप";
    disk: "Disk" / "डिस्क";
    disk_fine: "enough room" / "पर्याप्त जगह";
    disk_soon: "nearly full" / "लगभग भरी";
    disk_full: "full: readings stay on the wearables" / "भरी हुई: माप यंत्रों पर ही हैं";
    clock: "Time" / "समय";
    clock_known: "known" / "पता है";
    clock_unknown: "not known yet" / "अभी पता नहीं";
    none: "No wearable is paired with this box yet." / "अभी इस बॉक्स से कोई यंत्र नहीं जुड़ा है।";
    wearer: "Wearer" / "पहनने वाला";
    nobody: "nobody wears it" / "कोई नहीं पहनता";
    link: "Connection" / "संपर्क";
    link_away: "away" / "दूर";
    link_pairing: "pairing" / "जुड़ रहा है";
    link_connecting: "connecting" / "संपर्क हो रहा है";
    link_draining: "connected, fetching" / "जुड़ा है, माप आ रहे हैं";
    link_live: "connected" / "जुड़ा है";
    signal: "Signal" / "सिग्नल";
    signal_strong: "strong" / "तेज़";
    signal_good: "good" / "ठीक";
    signal_weak: "weak" / "कमज़ोर";
    battery: "Battery" / "बैटरी";
    worn: "On the body" / "शरीर पर";
    last_seen: "Last reading" / "पिछला माप";
    on_wearable: "Still on the wearable" / "अभी यंत्र पर";
    on_wearable_frames: "{} packets to fetch" / "{} पैकेट लाने हैं";
    buffered: "Kept here for the cloud" / "क्लाउड के लिए यहाँ";
    firmware: "Software" / "सॉफ़्टवेयर";
    number: "Number" / "क्रमांक";
    stale: "This wearable and the box no longer know each other. Forget it, then pair it again." / "यह यंत्र और बॉक्स अब एक-दूसरे को नहीं पहचानते। इसे भुलाएँ, फिर दोबारा जोड़ें।";
    actions: "What do you want to do?" / "आप क्या करना चाहते हैं?";
    identify: "Make it blink" / "इसे चमकाएँ";
    identify_hint: "To see which one it is." / "ताकि पता चले कि यह कौन-सा है।";
    identified: "It blinks now." / "अब यह चमक रहा है।";
    give: "Give it to a wearer" / "किसी पहनने वाले को दें";
    change: "Give it to someone else" / "किसी और को दें";
    give_hint: "From then on its readings are that person's." / "तब से इसके माप उस व्यक्ति के होंगे।";
    take: "Take it back" / "वापस लें";
    take_hint: "Nobody wears it any more. Readings so far stay with the wearer." / "अब इसे कोई नहीं पहनता। अब तक के माप पहनने वाले के ही रहेंगे।";
    taken: "Nobody wears it now." / "अब इसे कोई नहीं पहनता।";
    withdraw: "The wearer no longer agrees" / "पहनने वाला अब सहमत नहीं है";
    withdraw_hint: "From now on nothing of this person is kept." / "अब से इस व्यक्ति का कुछ भी नहीं रखा जाएगा।";
    withdrawn: "It is recorded: nothing more is kept of this person." / "दर्ज हो गया: इस व्यक्ति का अब कुछ नहीं रखा जाएगा।";
    forget: "Forget this wearable" / "इस यंत्र को भुलाएँ";
    forget_hint: "The box no longer takes its readings. It has to be paired again." / "बॉक्स इसके माप नहीं लेगा। इसे फिर से जोड़ना होगा।";
    forgotten: "The box has forgotten {}." / "बॉक्स ने {} को भुला दिया।";
    intervals: "How often it measures" / "कितनी बार मापे";
    intervals_why: "Less often makes its battery and its memory last longer." / "कम बार मापने से बैटरी और स्मृति ज़्यादा चलती है।";
    intervals_hint: "Seconds from one reading to the next. An empty field: as usual." / "एक माप से अगले माप तक सेकंड। खाली छोड़ें: सामान्य की तरह।";
    intervals_bounds: "{} to {} seconds" / "{} से {} सेकंड";
    intervals_set: "Set it" / "लागू करें";
    intervals_kept: "It is kept. The wearable does so as soon as it is connected." / "सहेज लिया गया। यंत्र जुड़ते ही ऐसा करेगा।";
    intervals_number: "Type whole seconds, or leave the field empty." / "पूरे सेकंड लिखें, या खाली छोड़ें।";
    intervals_reference: "It measures as usual." / "यह सामान्य रूप से मापता है।";
    intervals_wait: "It has not been told yet. Bring it near the box." / "इसे अभी बताया नहीं गया है। इसे बॉक्स के पास लाएँ।";
    intervals_in_force: "It measures so." / "यह ऐसे ही माप रहा है।";
    intervals_refused: "It does not measure so: {}" / "यह ऐसे नहीं मापता: {}";
    ambient_temperature: "Temperature around" / "आसपास का तापमान";
    live: "Live signal" / "लाइव सिग्नल";
    confirm_title: "Are you sure?" / "क्या आप निश्चित हैं?";
    confirm_forget: "Yes, forget it" / "हाँ, भुलाएँ";
    confirm_take: "Yes, take it back" / "हाँ, वापस लें";
    confirm_withdraw: "Yes, record it" / "हाँ, दर्ज करें";
    unsent: "Readings that it still holds and that the box has not fetched would be lost to this box. Keep it near until it is shown as connected, if you can." / "जो माप अभी यंत्र पर हैं और बॉक्स तक नहीं आए, वे इस बॉक्स को नहीं मिलेंगे। हो सके तो “जुड़ा है” दिखने तक इसे पास रखें।";
}
}
