"""Ordinary sentences of our own in other languages, one a line, short ones among them."""

SENTENCES = {
    "Spanish": """
        Mi hermana vive en una casa muy pequeña cerca del mar.
        No tengo dinero para comprar un coche nuevo.
        ¿Dónde está la estación de tren?
        Mañana vamos a comer con mis padres.
        Hace mucho frío esta noche.
        El perro duerme en la cocina.
        Me gusta leer libros por la tarde.
        Ella trabaja en un hospital desde hace tres años.
        Los niños juegan en el parque.
        Creo que va a llover.
        Tu amigo es un idiota y no quiero verlo más.
        ¿Qué quieres hacer hoy?
    """,
    "Portuguese": """
        Eu moro numa cidade pequena perto da praia.
        Não tenho tempo para falar com você agora.
        Onde fica a estação de metrô?
        Ela comprou um carro novo na semana passada.
        Está muito frio hoje de manhã.
        O gato dorme em cima da mesa.
        Gosto de ouvir música à noite.
        As crianças estão brincando no jardim.
        Acho que vai chover amanhã.
        Meu irmão trabalha num banco.
        Você é muito burro.
        O que vamos comer hoje?
    """,
    "French": """
        Ma sœur habite dans une petite maison près de la mer.
        Je n'ai pas assez d'argent pour acheter une voiture.
        Où se trouve la gare, s'il vous plaît ?
        Demain nous mangeons chez mes parents.
        Il fait très froid ce soir.
        Le chien dort dans la cuisine.
        J'aime lire des livres le soir.
        Elle travaille dans un hôpital depuis trois ans.
        Les enfants jouent dans le parc.
        Je crois qu'il va pleuvoir.
        Ton ami est un imbécile.
        Qu'est-ce que tu veux faire ?
    """,
    "Italian": """
        Mia sorella vive in una piccola casa vicino al mare.
        Non ho abbastanza soldi per comprare una macchina.
        Dove si trova la stazione dei treni?
        Domani mangiamo dai miei genitori.
        Fa molto freddo questa sera.
        Il cane dorme nella cucina.
        Mi piace leggere libri di sera.
        Lei lavora in ospedale da tre anni.
        I bambini giocano nel parco.
        Credo che stia per piovere.
        Il tuo amico è uno stupido.
        Che cosa vuoi fare oggi?
    """,
    "German": """
        Meine Schwester wohnt in einem kleinen Haus am Meer.
        Ich habe nicht genug Geld für ein neues Auto.
        Wo ist der Bahnhof?
        Morgen essen wir bei meinen Eltern.
        Heute Abend ist es sehr kalt.
        Der Hund schläft in der Küche.
        Ich lese gern Bücher am Abend.
        Sie arbeitet seit drei Jahren im Krankenhaus.
        Die Kinder spielen im Park.
        Ich glaube, es regnet bald.
        Dein Freund ist ein Dummkopf.
        Was willst du heute machen?
    """,
    "Dutch": """
        Mijn zus woont in een klein huis aan zee.
        Ik heb niet genoeg geld voor een nieuwe auto.
        Waar is het station?
        Morgen eten we bij mijn ouders.
        Het is erg koud vanavond.
        De hond slaapt in de keuken.
        Ik lees graag boeken in de avond.
        Zij werkt al drie jaar in een ziekenhuis.
        De kinderen spelen in het park.
        Ik denk dat het gaat regenen.
        Jouw vriend is een sukkel.
        Wat wil je vandaag doen?
    """,
    "Swedish": """
        Min syster bor i ett litet hus vid havet.
        Jag har inte råd med en ny bil.
        Var ligger järnvägsstationen?
        Imorgon äter vi hos mina föräldrar.
        Det är mycket kallt ikväll.
        Hunden sover i köket.
        Jag tycker om att läsa böcker på kvällen.
        Hon har arbetat på sjukhuset i tre år.
        Barnen leker i parken.
        Jag tror att det kommer att regna.
        Din vän är en idiot och jag vill inte träffa honom.
        Vad vill du göra idag?
    """,
    "Danish": """
        Min søster bor i et lille hus ved havet.
        Jeg har ikke råd til en ny bil.
        Hvor ligger banegården?
        I morgen spiser vi hos mine forældre.
        Det er meget koldt i aften.
        Hunden sover i køkkenet.
        Jeg kan godt lide at læse bøger om aftenen.
        Hun har arbejdet på hospitalet i tre år.
        Børnene leger i parken.
        Jeg tror, det bliver regnvejr.
        Hvad vil du lave i dag?
    """,
    "Norwegian": """
        Søsteren min bor i et lite hus ved sjøen.
        Jeg har ikke råd til ny bil.
        Hvor ligger jernbanestasjonen?
        I morgen spiser vi hos foreldrene mine.
        Det er veldig kaldt i kveld.
        Hunden sover på kjøkkenet.
        Jeg liker å lese bøker om kvelden.
        Hun har jobbet på sykehuset i tre år.
        Barna leker i parken.
        Jeg tror det kommer til å regne.
        Hva vil du gjøre i dag?
    """,
    "Polish": """
        Moja siostra mieszka w małym domu nad morzem.
        Nie mam pieniędzy na nowy samochód.
        Gdzie jest dworzec kolejowy?
        Jutro jemy obiad u moich rodziców.
        Dzisiaj wieczorem jest bardzo zimno.
        Pies śpi w kuchni.
        Lubię czytać książki wieczorem.
        Ona pracuje w szpitalu od trzech lat.
        Dzieci bawią się w parku.
        Myślę, że będzie padać.
        Twój kolega jest głupi.
        Co chcesz dzisiaj robić?
    """,
    "Czech": """
        Moje sestra bydlí v malém domě u moře.
        Nemám peníze na nové auto.
        Kde je nádraží?
        Zítra obědváme u rodičů.
        Dnes večer je velká zima.
        Pes spí v kuchyni.
        Rád čtu knihy večer.
        Pracuje v nemocnici už tři roky.
        Děti si hrají v parku.
        Myslím, že bude pršet.
        Tvůj kamarád je hlupák.
        Co chceš dnes dělat?
    """,
    "Croatian": """
        Moja sestra živi u maloj kući blizu mora.
        Nemam dovoljno novca za novi auto.
        Gdje je kolodvor?
        Sutra ručamo kod mojih roditelja.
        Večeras je jako hladno.
        Pas spava u kuhinji.
        Volim čitati knjige navečer.
        Ona radi u bolnici već tri godine.
        Djeca se igraju u parku.
        Mislim da će padati kiša.
        Što želiš danas raditi?
    """,
    "Romanian": """
        Sora mea locuiește într-o casă mică lângă mare.
        Nu am bani pentru o mașină nouă.
        Unde este gara?
        Mâine mâncăm la părinții mei.
        Este foarte frig în seara asta.
        Câinele doarme în bucătărie.
        Îmi place să citesc cărți seara.
        Ea lucrează la spital de trei ani.
        Copiii se joacă în parc.
        Cred că o să plouă.
        Prietenul tău este prost.
        Ce vrei să faci astăzi?
    """,
    "Turkish": """
        Kız kardeşim deniz kenarında küçük bir evde yaşıyor.
        Yeni bir araba almak için param yok.
        Tren istasyonu nerede?
        Yarın ailemle yemek yiyeceğiz.
        Bu akşam hava çok soğuk.
        Köpek mutfakta uyuyor.
        Akşamları kitap okumayı severim.
        Üç yıldır hastanede çalışıyor.
        Çocuklar parkta oynuyor.
        Sanırım yağmur yağacak.
        Senin arkadaşın çok aptal.
        Bugün ne yapmak istiyorsun?
    """,
    "Finnish": """
        Siskoni asuu pienessä talossa meren rannalla.
        Minulla ei ole rahaa uuteen autoon.
        Missä on rautatieasema?
        Huomenna syömme vanhempieni luona.
        Tänä iltana on hyvin kylmä.
        Koira nukkuu keittiössä.
        Luen mielelläni kirjoja illalla.
        Hän on ollut sairaalassa töissä kolme vuotta.
        Lapset leikkivät puistossa.
        Luulen, että kohta sataa.
        Ystäväsi on tyhmä.
        Mitä haluat tehdä tänään?
    """,
    "Hungarian": """
        A nővérem egy kis házban lakik a tenger mellett.
        Nincs elég pénzem új autóra.
        Hol van a pályaudvar?
        Holnap a szüleimnél ebédelünk.
        Ma este nagyon hideg van.
        A kutya a konyhában alszik.
        Szeretek este könyvet olvasni.
        Három éve dolgozik a kórházban.
        A gyerekek a parkban játszanak.
        Azt hiszem, esni fog.
        A barátod nagyon buta.
        Mit akarsz ma csinálni?
    """,
    "Indonesian": """
        Kakak saya tinggal di rumah kecil dekat pantai.
        Saya tidak punya uang untuk membeli mobil baru.
        Di mana stasiun kereta?
        Besok kami makan di rumah orang tua saya.
        Malam ini sangat dingin.
        Anjing itu tidur di dapur.
        Saya suka membaca buku pada malam hari.
        Dia sudah bekerja di rumah sakit selama tiga tahun.
        Anak-anak bermain di taman.
        Saya kira akan turun hujan.
        Temanmu itu bodoh sekali.
        Kamu mau melakukan apa hari ini?
    """,
    "Vietnamese": """
        Chị tôi sống trong một ngôi nhà nhỏ gần biển.
        Tôi không có đủ tiền để mua xe mới.
        Nhà ga ở đâu?
        Ngày mai chúng tôi ăn cơm với bố mẹ.
        Tối nay trời rất lạnh.
        Con chó ngủ trong bếp.
        Tôi thích đọc sách vào buổi tối.
        Cô ấy làm việc ở bệnh viện được ba năm rồi.
        Trẻ em chơi trong công viên.
        Tôi nghĩ trời sắp mưa.
        Hôm nay bạn muốn làm gì?
    """,
    "Tagalog": """
        Nakatira ang kapatid ko sa maliit na bahay malapit sa dagat.
        Wala akong pera para bumili ng bagong kotse.
        Nasaan ang istasyon ng tren?
        Bukas kakain kami kasama ng mga magulang ko.
        Malamig ngayong gabi.
        Natutulog ang aso sa kusina.
        Mahilig akong magbasa ng mga libro.
        Tatlong taon na siyang nagtatrabaho sa ospital.
        Naglalaro ang mga bata sa parke.
        Sa tingin ko uulan mamaya.
        Ano ang gusto mong gawin?
    """,
    "Swahili": """
        Dada yangu anaishi katika nyumba ndogo karibu na bahari.
        Sina pesa za kutosha kununua gari jipya.
        Kituo cha treni kiko wapi?
        Kesho tutakula pamoja na wazazi wangu.
        Usiku huu kuna baridi sana.
        Mbwa analala jikoni.
        Ninapenda kusoma vitabu jioni.
        Amefanya kazi hospitalini kwa miaka mitatu.
        Watoto wanacheza uwanjani.
        Nadhani mvua itanyesha.
        Unataka kufanya nini leo?
    """,
    "Russian": """
        Моя сестра живёт в маленьком доме у моря.
        У меня нет денег на новую машину.
        Где находится вокзал?
        Завтра мы обедаем у моих родителей.
        Сегодня вечером очень холодно.
        Собака спит на кухне.
        Я люблю читать книги вечером.
        Она три года работает в больнице.
        Дети играют в парке.
        Кажется, скоро пойдёт дождь.
        Рот, нос и ухо.
        Что ты хочешь делать?
    """,
    "Greek": """
        Η αδελφή μου μένει σε ένα μικρό σπίτι κοντά στη θάλασσα.
        Δεν έχω λεφτά για καινούριο αυτοκίνητο.
        Πού είναι ο σταθμός;
        Αύριο τρώμε στους γονείς μου.
        Κάνει πολύ κρύο απόψε.
        Ο σκύλος κοιμάται στην κουζίνα.
        Μου αρέσει να διαβάζω βιβλία.
        Δουλεύει στο νοσοκομείο τρία χρόνια.
        Τα παιδιά παίζουν στο πάρκο.
        Νομίζω ότι θα βρέξει.
        Τι θέλεις να κάνεις σήμερα;
    """,
    "Arabic": """
        تسكن أختي في بيت صغير قرب البحر.
        ليس عندي مال لشراء سيارة جديدة.
        أين محطة القطار؟
        غدا نأكل عند والدي.
        الجو بارد جدا هذا المساء.
        الكلب ينام في المطبخ.
        أحب قراءة الكتب في المساء.
        تعمل في المستشفى منذ ثلاث سنوات.
        الأطفال يلعبون في الحديقة.
        أظن أنها ستمطر.
    """,
    "Hebrew": """
        אחותי גרה בבית קטן ליד הים.
        אין לי כסף למכונית חדשה.
        איפה תחנת הרכבת?
        מחר נאכל אצל ההורים שלי.
        קר מאוד הערב.
        הכלב ישן במטבח.
        אני אוהב לקרוא ספרים בערב.
        היא עובדת בבית חולים שלוש שנים.
        הילדים משחקים בפארק.
        נדמה לי שירד גשם.
    """,
    "Hindi": """
        मेरी बहन समुद्र के पास एक छोटे घर में रहती है।
        मेरे पास नई गाड़ी के लिए पैसे नहीं हैं।
        रेलवे स्टेशन कहाँ है?
        कल हम माता पिता के साथ खाना खाएँगे।
        आज शाम बहुत ठंड है।
        कुत्ता रसोई में सोता है।
        मुझे शाम को किताबें पढ़ना पसंद है।
        वह तीन साल से अस्पताल में काम करती है।
        बच्चे बगीचे में खेल रहे हैं।
        मुझे लगता है बारिश होगी।
    """,
    "Chinese": """
        我姐姐住在海边的一所小房子里。
        我没有钱买新车。
        火车站在哪里？
        明天我们和父母一起吃饭。
        今天晚上很冷。
        狗在厨房里睡觉。
        我喜欢晚上看书。
        她在医院工作三年了。
        孩子们在公园里玩。
        我觉得要下雨了。
    """,
    "Japanese": """
        姉は海の近くの小さな家に住んでいます。
        新しい車を買うお金がありません。
        駅はどこですか。
        明日は両親と食事をします。
        今夜はとても寒いです。
        犬は台所で寝ています。
        夜に本を読むのが好きです。
        彼女は三年間病院で働いています。
        子供たちは公園で遊んでいます。
        雨が降りそうです。
    """,
    "Korean": """
        누나는 바다 근처 작은 집에 살아요.
        새 차를 살 돈이 없어요.
        기차역이 어디예요?
        내일 부모님과 같이 밥을 먹어요.
        오늘 밤은 아주 추워요.
        개가 부엌에서 자요.
        저녁에 책 읽는 것을 좋아해요.
        그녀는 병원에서 삼 년 동안 일했어요.
        아이들이 공원에서 놀아요.
        비가 올 것 같아요.
    """,
    "Thai": """
        พี่สาวของฉันอาศัยอยู่ในบ้านเล็กใกล้ทะเล
        ฉันไม่มีเงินซื้อรถใหม่
        สถานีรถไฟอยู่ที่ไหน
        พรุ่งนี้เราจะกินข้าวกับพ่อแม่
        คืนนี้หนาวมาก
        หมานอนในครัว
        ฉันชอบอ่านหนังสือตอนเย็น
        เธอทำงานที่โรงพยาบาลมาสามปี
        เด็กเล่นในสวน
        ฉันคิดว่าฝนจะตก
    """,
}


def sentences(language: str) -> list[str]:
    return [line.strip() for line in SENTENCES[language].strip().splitlines()]
